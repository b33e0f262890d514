"""The packed engine beside FlagEmbedding, on one random checkpoint in fp32.

Four shapes of random weights and 30 texts (200 with --long) from 1 token to 8,192 in many scripts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from FlagEmbedding import BGEM3FlagModel, FlagReranker

from bge_builder.convert import convert
from bge_worker.engine.engine import PackedEngine
from bge_worker.engine.outputs import Embedding, Outputs
from bge_worker.engine.reference import restore_prepare_for_model
from checkpoints import Shape, write_pair
from conftest import MODELS, settings_in

SHAPES = {
    "full width": Shape(1024, 16, 4096, layers=2),
    "width 384": Shape(384, 12, 1536, layers=3),
    "odd sizes": Shape(132, 3, 260, layers=2, vocab_size=4099, positions=8201),
    "wild biases and norms": Shape(256, 4, 1024, layers=3, wild=True),
}
# FlagEmbedding takes a minute for 8,192 tokens of a wide shape, so `make test` truncates to these
# lengths; `make parity` gives every shape the full length.
MAX_LENGTHS = {"full width": 128, "width 384": 512, "wild biases and norms": 2048}
QUERY = "Как градиентный спуск находит минимум? 梯度下降 🙂"
ODD_TEXTS = [
    "a",
    "é e\u0301 ﬁ ½ ＡＢＣ",
    "👩‍👩‍👧‍👦 🇷🇺 🙂",
    "z̷̢͙̎a̶̧͐l̴͇̿g̵͓̈́o̶̠͝",
    "你好，世界。机器学习",
    "tabs\tand\nlines  and   spaces ",
    "\u200bzero width\ufeff",
    "a <pad> spelt out </s> and <s> and <unk> and <mask>",
    "العربية हिन्दी 한국어",
    "\u0000 control \u0007",
]


@pytest.fixture(scope="session")
def texts(corpus: list[dict[str, str]]) -> list[str]:
    """200 texts: the odd ones, lengths from one word to some hundred, three long ones."""
    draw = random.Random(0)
    words = [*" ".join(row["text"] for row in corpus).split(), "学习", "🙂", "naïve", "e\u0301"]
    lengths = [round(draw.lognormvariate(2.4, 1.2)) for _ in range(200 - len(ODD_TEXTS) - 3)]
    drawn = [" ".join(draw.choices(words, k=min(200, max(1, n)))) for n in lengths]
    return [*ODD_TEXTS, *drawn, *(" ".join(draw.choices(words, k=n)) for n in (900, 2500, 9000))]


class Oracle:
    """FlagEmbedding, called in groups in which no long text pads the short ones.

    It runs the longest batch of a group twice, to try its size: small batches cost less.
    """

    def __init__(self, folder: Path) -> None:
        self.embedder = BGEM3FlagModel(str(folder / MODELS[0]), use_fp16=False, devices="cpu")
        self.reranker = FlagReranker(str(folder / MODELS[1]), use_fp16=False, devices="cpu")
        restore_prepare_for_model(self.reranker.tokenizer)

    def embed(self, texts: Sequence[str], max_length: int) -> list[dict[str, Any]]:
        def encode(group: list[str], batch_size: int) -> list[dict[str, Any]]:
            vectors = self.embedder.encode(
                group,
                batch_size=batch_size,
                max_length=max_length,
                return_dense=True,
                return_sparse=True,
                return_colbert_vecs=True,
            )
            return [{key: vectors[key][row] for key in vectors} for row in range(len(group))]

        return self._in_groups(encode, texts)

    def score(self, texts: Sequence[str], max_length: int) -> list[float]:
        def score(group: list[str], batch_size: int) -> list[float]:
            pairs = [[QUERY, text] for text in group]
            return self.reranker.compute_score(pairs, batch_size=batch_size, max_length=max_length)

        return self._in_groups(score, texts)

    @staticmethod
    def _in_groups(call: Callable[[list[str], int], list[Any]], texts: Sequence[str]) -> list[Any]:
        short = [index for index, text in enumerate(texts) if len(text) < 3000]
        long = [index for index, text in enumerate(texts) if len(text) >= 3000]
        results: dict[int, Any] = {}
        for group, batch_size in ((short, 4), (long, 1)):
            if group:
                outputs = call([texts[index] for index in group], batch_size)
                results |= zip(group, outputs, strict=True)
        return [results[index] for index in range(len(texts))]


@dataclass(frozen=True)
class Bench:
    """One shape: both engines, the texts, and the `max_length` they are truncated to."""

    max_length: int
    engine: PackedEngine
    oracle: Oracle
    texts: list[str]

    def embed(
        self, texts: Sequence[str], outputs: Outputs, max_length: int = 8192
    ) -> list[Embedding]:
        """Return the packed engine's outputs, in micro-batches of twenty texts, long and short."""
        results: list[Any] = []
        for start in range(0, len(texts), 20):
            encoded = self.engine.encode_texts(texts[start : start + 20], max_length)
            results += self.engine.run(outputs, encoded)
        return results

    def score(self, texts: Sequence[str], max_length: int) -> list[float]:
        results: list[Any] = []
        for start in range(0, len(texts), 20):
            encoded = self.engine.encode_pairs([QUERY], texts[start : start + 20], max_length)
            results += self.engine.run(Outputs.RELEVANCE, encoded)
        return results


@pytest.fixture(scope="session", params=SHAPES, ids=lambda name: name.replace(" ", "-"))
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> Bench:
    folder = tmp_path_factory.mktemp("parity")
    sentences = [*texts[len(ODD_TEXTS) :], *ODD_TEXTS[:5]]
    write_pair(folder / "hub", SHAPES[request.param], sentences)
    for model in MODELS:
        convert(folder / "hub" / model, folder / model, dtype="float32")
    max_length = 8192
    if not request.config.getoption("--long"):
        max_length = MAX_LENGTHS.get(request.param, 8192)
        texts = [*texts[:28], texts[-3], texts[-1]]
    return Bench(max_length, PackedEngine(settings_in(folder)), Oracle(folder / "hub"), texts)
