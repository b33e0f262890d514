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

from builder.convert import convert
from checkpoints import Shape, write_pair

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "checkpoints" / "bench"
SHAPES = {
    "small": Shape(width=384, heads=12, feed_forward=1536, layers=6, vocab_size=250_002),
    "full": Shape(width=1024, heads=16, feed_forward=4096, layers=24, vocab_size=250_002),
}
MODELS = ("bge-m3", "bge-reranker-v2-m3")


def corpus() -> list[str]:
    lines = (ROOT / "builder" / "corpus.jsonl").read_text("utf-8").splitlines()
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
    and its time is that of one.
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
            return float(s.layers * full + 2 * tokens * s.width**2)
        per_text = 2 * texts * (2 * s.width**2 + 2 * s.width * s.feed_forward)
        last = 2 * tokens * 2 * s.width**2 + per_text + 4 * tokens * s.width
        return float((s.layers - 1) * full + last)


def workloads(shape: str) -> list[Workload]:
    """As many texts as a CPU can bear: the full shape has 55 times the small one's work a token."""
    small = shape == "small"
    mixed = mixed_texts(64 if small else 16)
    texts = {
        "query": of_length(1, 12),
        "mixed": mixed,
        "chunks": of_length(16 if small else 4, 512),
        "documents": of_length(1, 8192),
        "all three": mixed_texts(32 if small else 8),
    }
    about = {
        "query": "one query of 12 tokens",
        "mixed": f"{len(mixed)} texts of mixed lengths",
        "chunks": f"{len(texts['chunks'])} chunks of 512 tokens",
        "documents": "one document of 8,192 tokens",
        "all three": f"{len(texts['all three'])} mixed texts, dense, sparse and ColBERT",
    }
    kinds = {"all three": "all"}
    found = [
        Workload(
            name,
            about[name],
            kinds.get(name, "dense"),
            texts[name],
            lengths_of(texts[name]),
            repeat=(50 if small else 5) if name == "query" else 1,
        )
        for name in texts
        if small or name != "documents"
    ]
    (query,) = of_length(1, 12)
    for count in (25, 50, 100) if small else (10,):
        documents = of_length(count, 128)
        found.append(
            Workload(
                f"rerank {count}",
                f"one query, {count} documents of 128 tokens",
                "rerank",
                documents,
                [length + 12 for length in lengths_of(documents)],
                query,
            )
        )
    return found


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
    """All shapes have the same."""
    return Tokenizer.from_file(str(BENCH / "small" / "float32" / MODELS[0] / "tokenizer.json"))


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
