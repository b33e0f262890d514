"""What is measured: texts of realistic lengths, and full-format checkpoints of random weights."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

from builder.convert import convert
from checkpoints import Shape, write_pair

ROOT = Path(__file__).resolve().parents[1]
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
