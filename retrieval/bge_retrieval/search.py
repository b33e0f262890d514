"""Hybrid search: dense and sparse candidates, fused, rescored by MaxSim, reranked; as planned.

    query ─ one embed call ─┬─ dense  ─┐
                            ├─ sparse ─┴─ RRF or DBSF ─ MaxSim over colbert ─ cross-encoder
                            └─ colbert ───────────────────┘

Everything up to MaxSim is one request to Qdrant; the cross-encoder is one request to the worker.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from qdrant_client import models

from bge_client import Client, ConfigurationError, Embedding, HTTPStatusError
from bge_client.results import WireFloats

from .documents import text_at
from .metadata import DENSE, CollectionMetadata
from .schema import COLBERT, SPARSE, max_colbert_vectors, sparse_vector
from .store import Payload, PointId, Store

FUSED, RERANK = "fused", "rerank"
ALIAS_TTL_SECONDS = 5.0  # an alias is resolved again after this time
Fusion = Literal["rrf", "dbsf"]


@dataclass(frozen=True)
class Plan:
    """The stages of a search.

    `dense` and `sparse` each retrieve `candidates` points. RRF scores a document with the sum of
    1 / (rank / weight + `rrf_k` - 1), ranks from 1. This is Qdrant's form: with a weight of 3,
    rank 3 counts as rank 1 of the other list, and k = 60 of Cormack, Clarke and Büttcher (2009)
    is 61. `weights` are those of dense and sparse. The cross-encoder reads the first `rerank`.

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
        is_valid = len(self.weights) == 2 and all(map(math.isfinite, self.weights))
        if not is_valid or min(self.weights) < 0 or sum(self.weights) == 0:
            raise ConfigurationError(
                f"`weights` must be two numbers of at least 0, not both 0. Given: {self.weights}"
            )

    @property
    def is_fused(self) -> bool:
        return self.dense and self.sparse


@dataclass(frozen=True)
class Stage:
    """A document's rank in a stage, from 1, and its score there."""

    rank: int
    score: float


@dataclass(frozen=True)
class Hit:
    """A point. `stages` is filled only by `explain`."""

    id: PointId
    score: float
    text: str | None
    payload: Payload
    stages: dict[str, Stage] = field(default_factory=dict)

    @property
    def document_id(self) -> str:
        """The id with which the document was indexed."""
        return str(self.payload.get("_id", self.payload.get("id", self.id)))


@dataclass(frozen=True)
class SearchResult(Sequence[Hit]):
    """Hits, best first. `seconds` has the time spent in `embed`, `qdrant` and `rerank`."""

    hits: list[Hit]
    seconds: dict[str, float]
    tokens: int

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, index: Any) -> Any:
        return self.hits[index]


class HybridSearch:
    """Searches a collection or the collection behind an alias. Not thread-safe.

    `reranker` is the endpoint for reranking; by default `client`.

    Raises:
        ConfigurationError: the collection does not exist, or lacks vectors that the plan needs.
        FingerprintError: the collection has no metadata.
    """

    def __init__(
        self,
        store: Store,
        client: Client,
        collection: str,
        plan: Plan | None = None,
        *,
        reranker: Client | None = None,
    ) -> None:
        self._store, self._client = store, client
        self._reranker = reranker or client
        self._name = collection
        self._plan = plan or Plan()
        self._resolved_at = -ALIAS_TTL_SECONDS
        self._resolve()

    def search(
        self,
        query: str,
        limit: int = 10,
        *,
        filter: models.Filter | None = None,
        explain: bool = False,
    ) -> SearchResult:
        """Return the best `limit` points that pass the filter.

        `explain` adds each hit's rank in every stage, at one more request for each stage. Hits
        after the reranked ones keep their retrieval score.

        Raises:
            FingerprintError: the endpoint serves another model than the collection's.
            BGEError: see `errors.py`.
        """
        if limit < 1:
            raise ConfigurationError(f"`limit` must be at least 1. Given: {limit}")
        if time.monotonic() - self._resolved_at > ALIAS_TTL_SECONDS:
            self._resolve()
        timer = _Timer()
        embedding, tokens = self._embed(query)
        timer.record("embed")
        try:
            points, stages = self._retrieve(embedding, limit, filter, explain)
        except HTTPStatusError as error:
            # The collection may have been dropped after its alias moved.
            if error.status != 404 or not self._alias_moved():
                raise
            self.metadata.check_fingerprint(embedding.fingerprint, self.collection)
            points, stages = self._retrieve(embedding, limit, filter, explain)
        timer.record("qdrant")
        hits = [self._hit(point, stages) for point in points]
        if self._plan.rerank:
            hits, rerank_tokens = self._rerank(query, hits, explain)
            tokens += rerank_tokens
            timer.record("rerank")
        return SearchResult(hits[:limit], timer.seconds, tokens)

    def _retrieve(
        self, embedding: Embedding, limit: int, filter: models.Filter | None, explain: bool
    ) -> tuple[list[models.ScoredPoint], dict[str, dict[PointId, Stage]]]:
        limit = max(limit, self._plan.rerank)
        requests = QueryRequests(self._plan, embedding, self.metadata, limit)
        points = self._points(requests.final, filter)
        return points, self._stages(requests, filter) if explain else {}

    def _alias_moved(self) -> bool:
        """Resolve the alias again. Return whether it points to another collection now."""
        previous = self.collection
        self._resolve()
        return self.collection != previous

    def _resolve(self) -> None:
        """Resolve the alias and check its collection, to which queries are then sent directly."""
        collection = self._store.resolve(self._name)
        metadata = CollectionMetadata.load(self._store, collection)
        if self._plan.colbert and not metadata.colbert:
            raise ConfigurationError(f"collection `{collection}` has no ColBERT vectors")
        self.collection, self.metadata = collection, metadata
        self._resolved_at = time.monotonic()

    def _embed(self, query: str) -> tuple[Embedding, int]:
        result = self._client.embed(
            query,
            dense=self._plan.dense,
            sparse=self._plan.sparse,
            colbert=self._plan.colbert,
            dtype="float32",
        )
        self.metadata.check_fingerprint(result.fingerprint, self.collection)
        return result[0], result.usage.total_tokens

    def _points(
        self, request: dict[str, Any], filter: models.Filter | None
    ) -> list[models.ScoredPoint]:
        request = _with_filter(request, filter)
        return self._store.query(self.collection, query_filter=filter, **request)

    def _stages(
        self, requests: QueryRequests, filter: models.Filter | None
    ) -> dict[str, dict[PointId, Stage]]:
        """Return the rank and score of each point in every stage of Qdrant."""
        return {
            name: {
                point.id: Stage(rank, point.score)
                for rank, point in enumerate(self._points(request, filter), 1)
            }
            for name, request in requests.stages.items()
        }

    def _hit(self, point: models.ScoredPoint, stages: dict[str, dict[PointId, Stage]]) -> Hit:
        payload = point.payload or {}
        ranks = {name: by_id[point.id] for name, by_id in stages.items() if point.id in by_id}
        text = text_at(payload, self.metadata.text_fields)
        return Hit(point.id, point.score, text, payload, ranks)

    def _rerank(self, query: str, hits: list[Hit], explain: bool) -> tuple[list[Hit], int]:
        """Rerank the first hits. Hits without text follow the reranked ones, in their order."""
        candidates = [hit for hit in hits[: self._plan.rerank] if hit.text]
        if not candidates:
            return hits, 0
        ranked = self._reranker.rerank(query, [hit.text or "" for hit in candidates])
        scored = []
        for rank, result in enumerate(ranked, 1):
            hit, score = candidates[result.index], result.relevance_score
            stages = {**hit.stages, RERANK: Stage(rank, score)} if explain else {}
            scored.append(replace(hit, score=score, stages=stages))
        reranked_ids = {hit.id for hit in candidates}
        rest = [hit for hit in hits if hit.id not in reranked_ids]
        return scored + rest, ranked.usage.total_tokens


class QueryRequests:
    """Query arguments: `stages` by name, each prefetching the previous one, and the `final` one."""

    def __init__(
        self, plan: Plan, embedding: Embedding, metadata: CollectionMetadata, limit: int
    ) -> None:
        depth = max(limit, plan.candidates)
        legs: dict[str, dict[str, Any]] = {}
        if plan.dense:
            legs[DENSE] = {"query": _list(embedding.dense), "using": metadata.dense, "limit": depth}
        if plan.sparse:
            legs[SPARSE] = {"query": sparse_vector(embedding), "using": SPARSE, "limit": depth}
        self.stages = dict(legs)
        if plan.is_fused:
            prefetch = [models.Prefetch(**leg) for leg in legs.values()]
            query = _fusion_query(plan)
            self.stages[FUSED] = {"prefetch": prefetch, "query": query, "limit": depth}
        if plan.colbert:
            previous = models.Prefetch(**list(self.stages.values())[-1])
            query = _list(embedding.colbert)[: max_colbert_vectors(metadata.dimensions)]
            self.stages[COLBERT] = {
                "prefetch": [previous],
                "query": query,
                "using": COLBERT,
                "limit": depth,
            }
        self.final = {**list(self.stages.values())[-1], "limit": limit}


def _fusion_query(plan: Plan) -> Any:
    if plan.fusion == "dbsf":
        return models.FusionQuery(fusion=models.Fusion.DBSF)
    return models.RrfQuery(rrf=models.Rrf(k=plan.rrf_k, weights=list(plan.weights)))


def _with_filter(request: dict[str, Any], filter: models.Filter | None) -> dict[str, Any]:
    """Apply the filter to each prefetch too, or filtered points would take up candidates."""
    if filter is None or "prefetch" not in request:
        return request
    prefetches = [_prefetch_with_filter(prefetch, filter) for prefetch in request["prefetch"]]
    return {**request, "prefetch": prefetches}


def _prefetch_with_filter(prefetch: models.Prefetch, filter: models.Filter) -> models.Prefetch:
    nested = prefetch.prefetch
    if isinstance(nested, list):
        nested = [_prefetch_with_filter(inner, filter) for inner in nested]
    return prefetch.model_copy(update={"filter": filter, "prefetch": nested})


def _list(array: WireFloats | None) -> Any:
    if array is None:
        raise AssertionError("the embedding lacks a vector. This is a bug.")
    return array.tolist()


class _Timer:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def record(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now
