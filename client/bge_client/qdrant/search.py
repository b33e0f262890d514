"""Hybrid search: dense and sparse candidates, fused, rescored by MaxSim, reranked; as planned.

    query ─ one embed call ─┬─ dense  ─┐
                            ├─ sparse ─┴─ RRF or DBSF ─ MaxSim over colbert ─ cross-encoder
                            └─ colbert ───────────────────┘

All up to MaxSim is one request to Qdrant; the cross-encoder is one to the worker.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qdrant_client import models

from ..client import Client
from ..errors import ConfigurationError, HTTPStatusError
from ..results import Embedding, Floats
from .documents import text_at
from .metadata import DENSE, CollectionMetadata
from .schema import COLBERT, SPARSE, max_colbert_vectors, sparse_vector
from .store import Payload, PointId, Store

FUSED, RERANK = "fused", "rerank"
ALIAS_TTL_SECONDS = 5.0  # how long an alias is taken to point where it did
Fusion = Literal["rrf", "dbsf"]


@dataclass(frozen=True)
class Plan:
    """The stages of a search.

    `candidates` are taken by each of `dense` and `sparse`. RRF gives a document the sum of
    1 / (rank / weight + `rrf_k` - 1), ranks from 1: that is Qdrant's form, in which a weight of 3
    lets the third of one leg count as the first of the other, and the 60 of Cormack, Clarke and
    Büttcher (2009) is 61. `weights` are those of dense and sparse. `rerank` is how many of the
    best the cross-encoder reads.

    Raises:
        ConfigurationError: no stage finds anything, or a number is out of range.
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
            raise ConfigurationError("at least one of `dense` and `sparse` must find candidates")
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
                f"`weights` are two numbers from 0, not both 0. Given: {self.weights}"
            )

    @property
    def is_fused(self) -> bool:
        return self.dense and self.sparse


@dataclass(frozen=True)
class Stage:
    """Where a stage put a document: rank from 1, and the stage's own score."""

    rank: int
    score: float


@dataclass(frozen=True)
class Hit:
    """A point found. `stages` is empty unless an explanation was asked for."""

    id: PointId
    score: float
    text: str | None
    payload: Payload
    stages: dict[str, Stage] = field(default_factory=dict)

    @property
    def document_id(self) -> str:
        """The id its document was indexed with."""
        return str(self.payload.get("_id", self.payload.get("id", self.id)))


@dataclass(frozen=True)
class SearchResult(Sequence[Hit]):
    """Hits, best first, and where the time went: seconds by `embed`, `qdrant`, `rerank`."""

    hits: list[Hit]
    seconds: dict[str, float]
    tokens: int

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, index: Any) -> Any:
        return self.hits[index]


class HybridSearch:
    """Searches one collection, or whatever an alias points to; not for several threads at once.

    `reranker` is the endpoint for reranking, if it is another one.

    Raises:
        ConfigurationError: there is no such collection, or it lacks what the plan needs.
        FingerprintError: it does not say what its vectors are of.
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
        """The best `limit` points for a text, those alone that pass the filter.

        With `explain`, each says where every stage put it (one more request for each).
        Behind what the cross-encoder has read, hits keep the scores they had.

        Raises:
            FingerprintError: the endpoint's vectors are not of the collection's model.
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
            # Perhaps the collection was dropped when its alias had moved.
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
        requests = QueryRequests(
            self._plan, embedding, self.metadata, max(limit, self._plan.rerank)
        )
        points = self._points(requests.final, filter)
        return points, self._stages(requests, filter) if explain else {}

    def _alias_moved(self) -> bool:
        """Look the alias up again. Return whether it leads to another collection now."""
        previous = self.collection
        self._resolve()
        return self.collection != previous

    def _resolve(self) -> None:
        """The collection behind the name: queries go to it and not to the alias, so that the one
        that was checked is the one that answers."""
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
        """Of each stage that Qdrant has, the places it gave."""
        return {
            name: {
                point.id: Stage(rank, point.score)
                for rank, point in enumerate(self._points(request, filter), 1)
            }
            for name, request in requests.stages.items()
        }

    def _hit(self, point: models.ScoredPoint, stages: dict[str, dict[PointId, Stage]]) -> Hit:
        payload = point.payload or {}
        hit_stages = {
            name: points[point.id] for name, points in stages.items() if point.id in points
        }
        text = text_at(payload, self.metadata.text_fields)
        return Hit(point.id, point.score, text, payload, hit_stages)

    def _rerank(self, query: str, hits: list[Hit], explain: bool) -> tuple[list[Hit], int]:
        """By the cross-encoder; what it cannot read stays behind what it can, in its order."""
        candidates = [hit for hit in hits[: self._plan.rerank] if hit.text]
        if not candidates:
            return hits, 0
        ranked = self._reranker.rerank(query, [hit.text or "" for hit in candidates])
        scored = [
            Hit(
                (hit := candidates[result.index]).id,
                result.relevance_score,
                hit.text,
                hit.payload,
                {**hit.stages, RERANK: Stage(rank, result.relevance_score)} if explain else {},
            )
            for rank, result in enumerate(ranked, 1)
        ]
        reranked_ids = {hit.id for hit in candidates}
        rest = [hit for hit in hits if hit.id not in reranked_ids]
        return scored + rest, ranked.usage.total_tokens


class QueryRequests:
    """What Qdrant is asked: `stages` by name, each on top of the one before, and the `last`."""

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
            self.stages[FUSED] = {
                "prefetch": prefetch,
                "query": _fusion_query(plan),
                "limit": depth,
            }
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
    """The filter in each prefetch too: candidates that do not pass must not take others' places."""
    if filter is None or "prefetch" not in request:
        return request
    return {
        **request,
        "prefetch": [_prefetch_with_filter(prefetch, filter) for prefetch in request["prefetch"]],
    }


def _prefetch_with_filter(prefetch: models.Prefetch, filter: models.Filter) -> models.Prefetch:
    nested = prefetch.prefetch
    if isinstance(nested, list):
        nested = [_prefetch_with_filter(inner, filter) for inner in nested]
    return prefetch.model_copy(update={"filter": filter, "prefetch": nested})


def _list(array: Floats | None) -> Any:
    if array is None:
        raise AssertionError("asked for with the query. This is a bug.")
    return array.tolist()


class _Timer:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def record(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now
