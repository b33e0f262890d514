"""Is a runtime folder what it says, and does it answer as its authors published?

The values are of the model cards and of vLLM's tests, in fp16; they agree within about 1%.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from bge_worker.checkpoint import Manifest, check_files
from bge_worker.engine import Embedding, Engine
from bge_worker.heads import SparseVector
from bge_worker.schema import EmbedRequest, Outputs, RerankRequest, Work
from bge_worker.service import load_engine
from bge_worker.settings import Settings

from .pins import PINS

QUESTIONS = ["What is BGE M3?", "Defination of BM25"]  # spelt as on the model card
PASSAGES = [
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and "
    "multi-vector interaction.",
    "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the "
    "query terms appearing in each document",
]
PANDA = (
    "The giant panda (Ailuropoda melanoleuca), sometimes called a panda bear or simply panda, "
    "is a bear species endemic to China."
)
PAIRS = [("query", "passage"), ("what is panda?", "hi"), ("what is panda?", PANDA)]
RELATIVE, ABSOLUTE = 0.01, 0.005


class Golden(NamedTuple):
    """One published number and what this folder answers."""

    name: str
    published: float
    found: float

    @property
    def agrees(self) -> bool:
        return abs(self.found - self.published) <= ABSOLUTE + RELATIVE * abs(self.published)


class Verified(NamedTuple):
    """`golden` is empty where the folder does not hold the published weights."""

    manifest: Manifest
    golden: list[Golden]


def verify(folder: Path) -> Verified:
    """Check every hash, load the folder strictly, and compare golden values if there are any.

    Raises:
        StartError: a file is not what the manifest says, or the folder does not load.
    """
    manifest = Manifest.read(folder)
    check_files(folder, manifest, every_byte=True)
    engine = load_engine(settings_for(folder, manifest))  # warms up: every output is computed
    published = {(pin.repo, pin.revision) for pin in PINS}
    if (manifest.model, manifest.revision) not in published:
        return Verified(manifest, [])
    golden = embed_values(engine) if manifest.role == "embed" else rerank_values(engine)
    return Verified(manifest, list(golden))


def settings_for(folder: Path, manifest: Manifest) -> Settings:
    settings = Settings(
        embed_model=None,
        rerank_model=None,
        engine="packed" if manifest.layout == "fused" else "flagembedding",
    )
    if manifest.role == "embed":
        return replace(settings, embed_model=folder)
    return replace(settings, rerank_model=folder)


def run(engine: Engine, work: Work) -> list[Embedding] | list[float]:
    return cast(
        "list[Embedding] | list[float]",
        list(engine.run(work.outputs, engine.encode(work, 0, len(work.texts)))),
    )


def embed_values(engine: Engine) -> Iterator[Golden]:
    everything = Outputs.DENSE | Outputs.SPARSE | Outputs.COLBERT
    texts = [*QUESTIONS, *PASSAGES, "Hi"]
    q0, q1, p0, p1, hi = cast("list[Embedding]", run(engine, EmbedRequest(texts, everything)))
    for question, passage, published in (
        (q0, p0, 0.6265),
        (q0, p1, 0.3477),
        (q1, p0, 0.3499),
        (q1, p1, 0.6780),
    ):
        yield Golden("dense cosine", published, float(np.dot(dense(question), dense(passage))))
    yield Golden("lexical score", 0.19555, lexical_score(sparse(q0), sparse(p0)))
    yield Golden("lexical score", 0.0, lexical_score(sparse(q0), sparse(q1)))
    yield Golden("colbert score", 0.7797, colbert_score(q0, p0))
    yield Golden("colbert score", 0.4620, colbert_score(q0, p1))
    weights = dict(zip(*sparse(hi), strict=True))
    yield Golden("weight of token 2673", 0.26711, float(weights.get(2673, 0.0)))


def rerank_values(engine: Engine) -> Iterator[Golden]:
    for (query, document), published in zip(PAIRS, (-5.652, -8.1875, 5.2617), strict=True):
        (logit,) = cast("list[float]", run(engine, RerankRequest(query, [document])))
        yield Golden("logit", published, logit)


def dense(embedding: Embedding) -> np.ndarray:
    return cast(np.ndarray, embedding.dense)


def sparse(embedding: Embedding) -> SparseVector:
    return cast(SparseVector, embedding.sparse)


def lexical_score(one: SparseVector, other: SparseVector) -> float:
    weights = dict(zip(*other, strict=True))
    return float(sum(value * weights.get(token, 0.0) for token, value in zip(*one, strict=True)))


def colbert_score(query: Embedding, passage: Embedding) -> float:
    """Mean over the query's tokens of the best match."""
    q, p = cast(np.ndarray, query.colbert), cast(np.ndarray, passage.colbert)
    return float((q @ p.T).max(axis=1).mean())
