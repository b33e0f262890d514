"""What is measured: texts of realistic lengths, and full-format checkpoints of random weights."""

from __future__ import annotations

import json
import random
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer

from bge_builder.convert import convert
from checkpoints import Shape, train_tokenizer, write_pair

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "checkpoints" / "bench"
SHAPES = {
    "small": Shape(width=384, heads=12, feed_forward=1536, layers=6, vocab_size=250_002),
    "full": Shape(width=1024, heads=16, feed_forward=4096, layers=24, vocab_size=250_002),
}
MODELS = ("bge-m3", "bge-reranker-v2-m3")


def models_in(folder: Path) -> dict[str, str]:
    """The variables by which a worker finds both."""
    names = ("BGE_EMBED_MODEL", "BGE_RERANK_MODEL")
    return {name: str(folder / model) for name, model in zip(names, MODELS, strict=True)}


def corpus() -> list[str]:
    lines = (ROOT / "builder" / "bge_builder" / "corpus.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def mixed_texts(count: int = 64, median: int = 37, most: int = 350) -> list[str]:
    """Texts of log-normal length in words, the words drawn from the shipped corpus."""
    draw = random.Random(0)
    words = " ".join(corpus()).split()
    lengths = [min(most, max(1, round(median * draw.lognormvariate(0, 1)))) for _ in range(count)]
    return [" ".join(draw.choices(words, k=length)) for length in lengths]


@dataclass(frozen=True)
class Workload:
    """What a contestant is asked: `dense`, `all` three outputs, or `rerank`; N texts.

    `lengths` are the tokens of each text or pair, special ones included. Short work is repeated,
    and its time is the median.
    """

    name: str
    about: str
    kind: str
    texts: list[str]
    lengths: list[int]
    query: str = ""
    repeat: int = 1

    def flops(self, shape: Shape) -> float:
        """Multiply-adds times two that it takes: attention over real tokens alone, and, where
        first tokens are enough, the last layer for those alone."""
        s, tokens, texts = shape, sum(self.lengths), len(self.texts)
        squares = sum(n * n for n in self.lengths)
        per_token = 4 * s.width**2 + 2 * s.width * s.feed_forward
        full = 2 * tokens * per_token + 4 * squares * s.width
        if self.kind == "all":
            colbert = 2 * (tokens - texts) * s.width**2
            return float(s.layers * full + colbert)
        per_text = 2 * texts * (2 * s.width**2 + 2 * s.width * s.feed_forward)
        last = 2 * tokens * 2 * s.width**2 + per_text + 4 * tokens * s.width
        return float((s.layers - 1) * full + last)

    def weights(self, shape: Shape) -> int:
        """Numbers in the layers' matrices: however few the tokens, each is read once."""
        return shape.layers * (4 * shape.width**2 + 2 * shape.width * shape.feed_forward)


NAMES = (
    "query", "mixed", "chunks", "documents", "all three", "rerank 25", "rerank 50", "rerank 100"
)  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """How many texts of each workload, and how long a reranked document is."""

    mixed: int
    chunks: int
    documents: int
    three: int
    rerank: tuple[int, ...]
    document: int = 128


COUNTS = {  # what a CPU can bear: the full shape has 55 times the small one's work a token
    ("small", "cpu"): Counts(mixed=64, chunks=16, documents=1, three=32, rerank=(25, 50, 100)),
    ("full", "cpu"): Counts(mixed=16, chunks=4, documents=1, three=8, rerank=(25,)),
    ("small", "cuda"): Counts(512, 256, 8, 128, (25, 50, 100), document=256),
    ("full", "cuda"): Counts(512, 256, 8, 128, (25, 50, 100), document=256),
}


def workloads(shape: str, device: str) -> list[Workload]:
    counts = COUNTS[shape, device]
    (query,) = of_length(1, 12)
    repeat = 50 if (shape, device) != ("full", "cpu") else 5
    found = [
        embedding("query", "one query of 12 tokens", [query], repeat=repeat),
        embedding("mixed", f"{counts.mixed} texts of mixed lengths", mixed_texts(counts.mixed)),
        embedding("chunks", f"{counts.chunks} chunks of 512 tokens", of_length(counts.chunks, 512)),
        embedding(
            "documents", f"{counts.documents} × 8,192 tokens", of_length(counts.documents, 8192)
        ),
        embedding(
            "all three",
            f"{counts.three} mixed texts, dense, sparse and ColBERT",
            mixed_texts(counts.three),
            kind="all",
        ),
    ]
    for count in counts.rerank:
        documents = of_length(count, counts.document)
        pairs = [length + 12 for length in lengths_of(documents)]
        about = f"one query, {count} documents of {counts.document} tokens"
        found.append(Workload(f"rerank {count}", about, "rerank", documents, pairs, query))
    return found


def embedding(
    name: str, about: str, texts: list[str], *, kind: str = "dense", repeat: int = 1
) -> Workload:
    return Workload(name, about, kind, texts, lengths_of(texts), repeat=repeat)


def of_length(count: int, tokens: int) -> list[str]:
    """Different texts of so many tokens, special ones included; of one or two fewer at times."""
    draw = random.Random(tokens)
    words = " ".join(corpus()).split()
    return [_cut(" ".join(draw.choices(words, k=2 * tokens)), tokens) for _ in range(count)]


def _cut(text: str, tokens: int) -> str:
    """Its beginning: a piece of a word at the end may take more tokens than it took inside it."""
    end = tokenizer().encode(text, add_special_tokens=False).offsets[tokens - 3][1]
    while lengths_of([text[:end]])[0] > tokens:
        end -= 1
    return text[:end]


def lengths_of(texts: list[str]) -> list[int]:
    return [len(encoding.ids) for encoding in tokenizer().encode_batch_fast(texts)]


@cache
def tokenizer() -> Tokenizer:
    """All shapes' tokenizer, without the pieces that fill a vocabulary up."""
    return train_tokenizer(corpus(), 4000)


def prepare(shape: str, folder: Path) -> None:
    """Both models in `folder/hub`, and converted in `folder/float32` and `folder/float16`."""
    if (folder / "done").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
    print(f"writing random checkpoints of the {shape} shape to {folder} …", file=sys.stderr)
    write_pair(folder / "hub", SHAPES[shape], corpus())
    for model in MODELS:
        for dtype in ("float32", "float16"):
            convert(folder / "hub" / model, folder / dtype / model, dtype=dtype)
    (folder / "done").touch()


if __name__ == "__main__":  # write the checkpoints of a shape
    prepare(sys.argv[1], BENCH / sys.argv[1])
