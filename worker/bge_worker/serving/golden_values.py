"""Whether the models compute correctly on this device: finite, repeatable, and as published.

The published values are those of the model cards and of vLLM's tests, in fp16; they agree within
about 1%. Also for `python -m bge_builder verify`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from ..engine.config import ModelInfo
from ..engine.engine import Engine
from ..engine.heads import Array
from ..engine.outputs import Embedding, Outputs, SparseVector
from .requests import DEFAULT_PAIR_LENGTH, MAX_LENGTH

PUBLISHED_REVISIONS = {
    "BAAI/bge-m3": "5617a9f61b028005a4858fdac845db406aefb181",
    "BAAI/bge-reranker-v2-m3": "953dc6f6f85a1b2dbfca4c34a2796e7dde08d41e",
}
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 0.01, 0.005
INT8_FACTOR = 5.0  # of both. Not tried on the published weights

TEXTS = [
    "What is BGE M3?",
    "Defination of BM25",  # spelt as on the model card
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and "
    "multi-vector interaction.",
    "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the "
    "query terms appearing in each document",
    "Hi",
]
PANDA = (
    "The giant panda (Ailuropoda melanoleuca), sometimes called a panda bear or simply "
    "panda, is a bear species endemic to China."
)
PAIRS = [("query", ["passage"]), ("what is panda?", ["hi", PANDA])]
LOGITS = (-5.652, -8.1875, 5.2617)


class GoldenValue(NamedTuple):
    """A published number and the one computed on this device. `factor` widens the tolerance."""

    name: str
    published: float
    computed: float
    factor: float = 1.0

    @property
    def agrees(self) -> bool:
        tolerance = ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * abs(self.published)
        return abs(self.computed - self.published) <= self.factor * tolerance


def check(engine: Engine) -> None:
    """Compute the texts above, with all outputs and with dense vectors alone, and the pairs.

    Raises:
        RuntimeError: vectors differ from run to run or from the published values.
        WorkerError: they cannot be computed.
    """
    for value in golden_values(engine):
        if not value.agrees:
            raise RuntimeError(
                f"{value.name}: published {value.published}, computed {value.computed:.4f}"
            )


def golden_values(engine: Engine) -> list[GoldenValue]:
    """Return the golden values of the loaded models; none for other weights than the published.

    Raises:
        RuntimeError: the vectors of equal texts differ, or are not of length one.
        WorkerError: they cannot be computed.
    """
    values: list[GoldenValue] = []
    if "embed" in engine.models:
        first = _embed(engine, Outputs.DENSE | Outputs.SPARSE | Outputs.COLBERT)
        _check_dense(first, _embed(engine, Outputs.DENSE))  # another last layer; a CUDA graph
        if is_published(engine.models["embed"]):
            values += embed_values(first)
    if "rerank" in engine.models:
        logits = _score(engine)
        if is_published(engine.models["rerank"]):
            values += score_values(logits)
    factor = INT8_FACTOR if engine.runtime.dtype == "int8" else 1.0
    return [value._replace(factor=factor) for value in values]


def is_published(model: ModelInfo) -> bool:
    return model.revision is not None and PUBLISHED_REVISIONS.get(model.model) == model.revision


def _embed(engine: Engine, outputs: Outputs) -> list[Embedding]:
    return cast(
        "list[Embedding]",
        [*engine.launch(outputs, engine.encode_texts(TEXTS, MAX_LENGTH)).results()],
    )


def _score(engine: Engine) -> list[float]:
    logits: list[float] = []
    for query, documents in PAIRS:
        encoded = engine.encode_pairs([query], documents, DEFAULT_PAIR_LENGTH)
        logits += cast("Sequence[float]", engine.launch(Outputs.RELEVANCE, encoded).results())
    return logits


def _check_dense(first: Sequence[Embedding], second: Sequence[Embedding]) -> None:
    vectors, repeated = (np.array([e.dense for e in run], np.float32) for run in (first, second))
    if not np.allclose(vectors, repeated, atol=1e-3):
        raise RuntimeError("the vectors of the same text differ")
    if not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
        raise RuntimeError("a dense vector is not of length one")


def embed_values(results: Sequence[Any]) -> Iterator[GoldenValue]:
    """Compare embeddings of `TEXTS`, with all outputs, with the published values."""
    q0, q1, p0, p1, hi = results
    for question, passage, cosine in (
        (q0, p0, 0.6265),
        (q0, p1, 0.3477),
        (q1, p0, 0.3499),
        (q1, p1, 0.6780),
    ):
        yield GoldenValue("dense cosine", cosine, float(question.dense @ passage.dense))
    yield GoldenValue("lexical score", 0.19555, _lexical_score(q0.sparse, p0.sparse))
    yield GoldenValue("lexical score", 0.0, _lexical_score(q0.sparse, q1.sparse))
    yield GoldenValue("colbert score", 0.7797, _colbert_score(q0.colbert, p0.colbert))
    yield GoldenValue("colbert score", 0.4620, _colbert_score(q0.colbert, p1.colbert))
    weights = dict(zip(*hi.sparse, strict=True))
    yield GoldenValue("weight of token 2673", 0.26711, float(weights.get(2673, 0.0)))


def score_values(logits: Sequence[float]) -> list[GoldenValue]:
    """Compare logits of `PAIRS` with the published values."""
    pairs = zip(LOGITS, logits, strict=True)
    return [GoldenValue("logit", published, logit) for published, logit in pairs]


def _lexical_score(query: SparseVector, passage: SparseVector) -> float:
    weights = dict(zip(*passage, strict=True))
    products = (value * weights.get(token, 0.0) for token, value in zip(*query, strict=True))
    return float(sum(products))


def _colbert_score(query: Array, passage: Array) -> float:
    """The mean over the query's tokens of the best match."""
    return float((query @ passage.T).max(axis=1).mean())
