"""What the published weights are known to answer: for a fitness check, and for `builder verify`.

The values are of the model cards and of vLLM's tests, in fp16; they agree within about 1%.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np

from ..engine.engine import Embedding, ModelInfo, Result
from ..engine.heads import SparseVector
from .requests import EmbedRequest, Outputs, RerankRequest

PUBLISHED = {
    "BAAI/bge-m3": "5617a9f61b028005a4858fdac845db406aefb181",
    "BAAI/bge-reranker-v2-m3": "953dc6f6f85a1b2dbfca4c34a2796e7dde08d41e",
}
RELATIVE, ABSOLUTE = 0.01, 0.005

EMBED = EmbedRequest(
    [
        "What is BGE M3?",
        "Defination of BM25",  # spelt as on the model card
        "BGE M3 is an embedding model supporting dense retrieval, lexical matching and "
        "multi-vector interaction.",
        "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the "
        "query terms appearing in each document",
        "Hi",
    ],
    Outputs.DENSE | Outputs.SPARSE | Outputs.COLBERT,
)
RERANK = (
    RerankRequest("query", ["passage"]),
    RerankRequest(
        "what is panda?",
        [
            "hi",
            "The giant panda (Ailuropoda melanoleuca), sometimes called a panda bear or simply "
            "panda, is a bear species endemic to China.",
        ],
    ),
)
LOGITS = (-5.652, -8.1875, 5.2617)


class Golden(NamedTuple):
    """One published number and what is answered here."""

    name: str
    published: float
    found: float

    @property
    def agrees(self) -> bool:
        return abs(self.found - self.published) <= ABSOLUTE + RELATIVE * abs(self.published)


def has_golden_values(model: ModelInfo) -> bool:
    """Whether these are the published weights."""
    return model.revision is not None and PUBLISHED.get(model.model) == model.revision


def embed_values(results: Sequence[Result]) -> Iterator[Golden]:
    """Of the results of `EMBED`."""
    q0, q1, p0, p1, hi = cast("Sequence[Embedding]", results)
    for question, passage, published in (
        (q0, p0, 0.6265),
        (q0, p1, 0.3477),
        (q1, p0, 0.3499),
        (q1, p1, 0.6780),
    ):
        yield Golden("dense cosine", published, float(np.dot(_dense(question), _dense(passage))))
    yield Golden("lexical score", 0.19555, _lexical_score(_sparse(q0), _sparse(p0)))
    yield Golden("lexical score", 0.0, _lexical_score(_sparse(q0), _sparse(q1)))
    yield Golden("colbert score", 0.7797, _colbert_score(q0, p0))
    yield Golden("colbert score", 0.4620, _colbert_score(q0, p1))
    weights = dict(zip(*_sparse(hi), strict=True))
    yield Golden("weight of token 2673", 0.26711, float(weights.get(2673, 0.0)))


def rerank_values(logits: Sequence[Result]) -> Iterator[Golden]:
    """Of the results of all of `RERANK`, one after the other."""
    for published, logit in zip(LOGITS, cast("Sequence[float]", logits), strict=True):
        yield Golden("logit", published, logit)


def _dense(embedding: Embedding) -> np.ndarray:
    return cast(np.ndarray, embedding.dense)


def _sparse(embedding: Embedding) -> SparseVector:
    return cast(SparseVector, embedding.sparse)


def _lexical_score(one: SparseVector, other: SparseVector) -> float:
    weights = dict(zip(*other, strict=True))
    return float(sum(value * weights.get(token, 0.0) for token, value in zip(*one, strict=True)))


def _colbert_score(query: Embedding, passage: Embedding) -> float:
    """Mean over the query's tokens of the best match."""
    q, p = cast(np.ndarray, query.colbert), cast(np.ndarray, passage.colbert)
    return float((q @ p.T).max(axis=1).mean())
