"""What the benchmarks measure: texts of realistic lengths, checkpoints of random weights."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer

from bge_builder.convert import convert
from bge_worker.engine.manifest import FORMAT
from checkpoints import Shape, train_tokenizer, write_pair
from trained import write_trained

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "checkpoints" / "bench"
MINIATURE = ROOT / "models" / "miniature-packed"
SHAPES = {
    "small": Shape(width=384, heads=12, feed_forward=1536, layers=6, vocab_size=250_002),
    "full": Shape(width=1024, heads=16, feed_forward=4096, layers=24, vocab_size=250_002),
}
TRAINED = "minilm"  # not a shape: an encoder with trained weights, and no reranker
MINILM = ROOT / "checkpoints" / "minilm" / "model"
MODELS = ("bge-m3", "bge-reranker-v2-m3")
DTYPES = ("float32", "float16", "int8")  # of the runtime folders


def model_settings(folder: Path) -> dict[str, str]:
    """Return the environment variables that name a worker's models."""
    names = ("BGE_EMBED_MODEL", "BGE_RERANK_MODEL")
    return {name: str(folder / model) for name, model in zip(names, MODELS, strict=True)}


def served_models() -> dict[str, str]:
    """Return the models that the environment names, by default the miniature."""
    defaults = model_settings(MINIATURE)
    return {name: os.environ.get(name, folder) for name, folder in defaults.items()}


def corpus() -> list[str]:
    lines = (ROOT / "builder" / "bge_builder" / "corpus.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def mixed_texts(count: int = 64, median: int = 37, maximum: int = 350) -> list[str]:
    """Return texts of random words of the corpus, with log-normal lengths in words."""
    rng = random.Random(0)
    words = " ".join(corpus()).split()
    lengths = [min(maximum, max(1, round(median * rng.lognormvariate(0, 1)))) for _ in range(count)]
    return [" ".join(rng.choices(words, k=length)) for length in lengths]


@dataclass(frozen=True)
class Workload:
    """N texts and the task: `kind` is `dense`, `all` (three outputs) or `rerank`.

    `lengths` are the token counts of each text or pair, with special tokens. The time is the median
    of `repeat` runs.
    """

    name: str
    about: str
    kind: str
    texts: list[str]
    lengths: list[int]
    query: str = ""
    repeat: int = 1

    def flops(self, shape: Shape) -> float:
        """Return the operations needed, two per multiply-add.

        Attention covers real tokens only. Unless all outputs are requested, the last layer covers
        first tokens only.
        """
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
        """Return the number of weights in the layers' matrices, each of which is read once."""
        return shape.layers * (4 * shape.width**2 + 2 * shape.width * shape.feed_forward)


NAMES = (
    "query", "mixed", "chunks", "documents", "all three", "rerank 25", "rerank 50", "rerank 100"
)  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """The number of texts of each workload, and the length of a reranked document."""

    mixed: int
    chunks: int
    documents: int
    all_three: int
    rerank: tuple[int, ...]
    document: int = 128


COUNTS = {  # fewer on a CPU: per token, the full shape needs 55 times the small one's operations
    ("small", "cpu"): Counts(64, 16, 1, 32, rerank=(25, 50, 100)),
    ("full", "cpu"): Counts(16, 4, 1, 8, rerank=(25,)),
    ("small", "cuda"): Counts(512, 256, 8, 128, (25, 50, 100), document=256),
    ("full", "cuda"): Counts(512, 256, 8, 128, (25, 50, 100), document=256),
}


def workloads(shape: str, device: str) -> list[Workload]:
    counts = COUNTS[shape, device]
    (query,) = texts_of_length(1, 12)
    repeat = 50 if (shape, device) != ("full", "cpu") else 5
    chunks = texts_of_length(counts.chunks, 512)
    long_texts = texts_of_length(counts.documents, 8192)
    result = [
        embedding("query", "one query of 12 tokens", [query], repeat=repeat),
        embedding("mixed", f"{counts.mixed} texts of mixed lengths", mixed_texts(counts.mixed)),
        embedding("chunks", f"{counts.chunks} chunks of 512 tokens", chunks),
        embedding("documents", f"{counts.documents} × 8,192 tokens", long_texts),
        embedding(
            "all three",
            f"{counts.all_three} mixed texts, dense, sparse and ColBERT",
            mixed_texts(counts.all_three),
            kind="all",
        ),
    ]
    for count in counts.rerank:
        documents = texts_of_length(count, counts.document)
        pairs = [length + 12 for length in token_lengths(documents)]
        about = f"one query, {count} documents of {counts.document} tokens"
        result.append(Workload(f"rerank {count}", about, "rerank", documents, pairs, query))
    return result


def embedding(
    name: str, about: str, texts: list[str], *, kind: str = "dense", repeat: int = 1
) -> Workload:
    return Workload(name, about, kind, texts, token_lengths(texts), repeat=repeat)


def texts_of_length(count: int, tokens: int) -> list[str]:
    """Return different texts of `tokens` tokens, some up to two tokens shorter."""
    rng = random.Random(tokens)
    words = " ".join(corpus()).split()
    return [_truncate(" ".join(rng.choices(words, k=2 * tokens)), tokens) for _ in range(count)]


def _truncate(text: str, tokens: int) -> str:
    """Cut a text. The end of a word that is cut may need more tokens than before the cut."""
    end = tokenizer().encode(text, add_special_tokens=False).offsets[tokens - 3][1]
    while token_lengths([text[:end]])[0] > tokens:
        end -= 1
    return text[:end]


def token_lengths(texts: list[str]) -> list[int]:
    return [len(encoding.ids) for encoding in tokenizer().encode_batch_fast(texts)]


@cache
def tokenizer() -> Tokenizer:
    """The tokenizer of all shapes, without the filler pieces of their vocabularies."""
    return train_tokenizer(corpus(), 4000)


def prepare(shape: str, folder: Path) -> None:
    """Write the models of a shape to `folder/hub`, and converted to `folder/float32` and so on."""
    done, content = folder / "done", f"{FORMAT} {DTYPES}"
    if done.is_file() and done.read_text() == content:
        return
    for name in ("hub", *DTYPES):  # of an interrupted run, or in an earlier format
        shutil.rmtree(folder / name, ignore_errors=True)  # not the peers' exports of the same hub
    print(f"writing checkpoints of the {shape} shape to {folder} …", file=sys.stderr)
    if shape == TRAINED:
        write_trained(MINILM, folder / "hub" / MODELS[0])
    else:
        write_pair(folder / "hub", SHAPES[shape], corpus())
    for source in (folder / "hub").iterdir():
        for dtype in DTYPES:
            convert(source, folder / dtype / source.name, dtype=dtype)
    done.write_text(content)


if __name__ == "__main__":  # write the checkpoints of a shape
    prepare(sys.argv[1], BENCH / sys.argv[1])
