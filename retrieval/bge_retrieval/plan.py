"""The stages of a search, and the requests to Qdrant for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from qdrant_client import models

from bge_client import ConfigurationError, Embedding

from .metadata import DENSE, CollectionMetadata
from .schema import COLBERT, SPARSE, max_colbert_vectors, present, sparse_vector

FUSED, RERANK = "fused", "rerank"
Fusion = Literal["rrf", "dbsf"]


class EmbedOptions(TypedDict):
    dense: bool
    sparse: bool
    colbert: bool
    dtype: Literal["float32"]


@dataclass(frozen=True)
class Plan:
    """The stages of a search.

    `dense` and `sparse` each retrieve `candidates` points. RRF scores a document with the sum of
    1 / (rank / weight + `rrf_k` - 1), ranks from 1. This is Qdrant's form: with a weight of 3,
    rank 3 counts as rank 1 of the other list, and k = 60 of Cormack, Clarke and Büttcher (2009)
    is 61. `weights` are those of dense and sparse. The cross-encoder reads the first `rerank`.

    In a collection with quantized vectors, Qdrant ranks by those, and with `rescore` then ranks the
    best `oversampling` times the limit by the original ones. By itself it would do so with binary
    vectors alone. Without `rescore`, their scores are no cosines.

    Raises:
        ConfigurationError: both `dense` and `sparse` are off, or a number is out of range.
    """

    dense: bool = True
    sparse: bool = True
    fusion: Fusion = "rrf"
    rrf_k: int = 61
    weights: tuple[float, float] = (1.0, 1.0)
    colbert: bool = False
    rerank: int = 0
    candidates: int = 100
    rescore: bool = True
    oversampling: float = 2.0

    def __post_init__(self) -> None:
        if not (self.dense or self.sparse):
            raise ConfigurationError("at least one of `dense` and `sparse` must be true")
        if self.fusion not in ("rrf", "dbsf"):
            raise ConfigurationError(f"`fusion` must be rrf or dbsf. Given: {self.fusion}")
        for name, minimum in (("rrf_k", 1), ("candidates", 1), ("rerank", 0)):
            if getattr(self, name) < minimum:
                raise ConfigurationError(
                    f"`{name}` must be at least {minimum}. Given: {getattr(self, name)}"
                )
        if not 1 <= self.oversampling < math.inf:
            raise ConfigurationError(
                f"`oversampling` must be at least 1. Given: {self.oversampling}"
            )
        if len(self.weights) != 2:
            raise ConfigurationError(f"`weights` must be two numbers. Given: {len(self.weights)}")
        is_valid = all(map(math.isfinite, self.weights))
        if not is_valid or min(self.weights) < 0 or sum(self.weights) == 0:
            raise ConfigurationError(
                f"`weights` must be numbers of at least 0, not both 0. Given: {self.weights}"
            )

    @property
    def is_fused(self) -> bool:
        return self.dense and self.sparse

    @property
    def embed_options(self) -> EmbedOptions:
        """Return the arguments of `embed` for a query."""
        return EmbedOptions(
            dense=self.dense, sparse=self.sparse, colbert=self.colbert, dtype="float32"
        )


def stage_requests(
    plan: Plan,
    embedding: Embedding,
    metadata: CollectionMetadata,
    limit: int,
    filter: models.Filter | None = None,
) -> dict[str, models.Prefetch]:
    """Return the request of each stage by name, in order. The last one gives the result.

    Each stage prefetches the previous ones. The filter applies to every prefetch, or points that
    it rejects would take up candidates.
    """
    common: dict[str, Any] = {"filter": filter, "limit": max(limit, plan.candidates)}
    scored = {**common, "params": _quantization_params(plan)}
    stages: dict[str, models.Prefetch] = {}
    if plan.dense:
        query = present(embedding.dense).tolist()
        stages[DENSE] = models.Prefetch(query=query, using=metadata.dense, **scored)
    if plan.sparse:
        query = sparse_vector(embedding)
        stages[SPARSE] = models.Prefetch(query=query, using=SPARSE, **common)
    if plan.is_fused:
        candidates = [*stages.values()]
        stages[FUSED] = models.Prefetch(prefetch=candidates, query=_fusion_query(plan), **common)
    if plan.colbert:
        candidates = [*stages.values()][-1:]
        vectors: Any = present(embedding.colbert)
        query = vectors[: max_colbert_vectors(metadata.dimensions)].tolist()
        stages[COLBERT] = models.Prefetch(prefetch=candidates, query=query, using=COLBERT, **scored)
    return stages


def query_request(
    stage: models.Prefetch, limit: int | None = None, *, with_payload: bool = False
) -> models.QueryRequest:
    """Return a stage as a query of its own."""
    return models.QueryRequest(
        prefetch=stage.prefetch,
        query=stage.query,
        using=stage.using,
        filter=stage.filter,
        params=stage.params,
        limit=stage.limit if limit is None else limit,
        with_payload=with_payload,
    )


def _quantization_params(plan: Plan) -> models.SearchParams:
    """Return parameters that a collection without quantized vectors ignores."""
    quantization = models.QuantizationSearchParams(
        rescore=plan.rescore, oversampling=plan.oversampling if plan.rescore else None
    )
    return models.SearchParams(quantization=quantization)


def _fusion_query(plan: Plan) -> models.Query:
    if plan.fusion == "dbsf":
        return models.FusionQuery(fusion=models.Fusion.DBSF)
    return models.RrfQuery(rrf=models.Rrf(k=plan.rrf_k, weights=list(plan.weights)))
