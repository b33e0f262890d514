"""What both kinds of search share: everything but the requests themselves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from qdrant_client import models

from bge_client import ConfigurationError, EmbedResult, RerankResult
from bge_client.codec import checked_text

from .documents import chunk_id, chunk_in, text_at
from .metadata import CollectionMetadata
from .plan import RERANK, Plan, query_request, stage_requests
from .results import Hit, SearchResult, Stage
from .store import PointId

ALIAS_TTL_SECONDS = 5.0


class Reranker(Protocol):
    """An endpoint or a provider: `Client`, `Router` and `JinaClient` are such."""

    def rerank(self, query: str, documents: Sequence[str]) -> RerankResult: ...


@dataclass(frozen=True)
class SearchTarget:
    """The collection that a name stood for at `resolved_at`, and its metadata."""

    collection: str
    metadata: CollectionMetadata
    resolved_at: float = field(default_factory=time.monotonic)

    @classmethod
    def checked(cls, collection: str, info: models.CollectionInfo, plan: Plan) -> SearchTarget:
        """Raises FingerprintError or ConfigurationError if the plan cannot search it."""
        metadata = CollectionMetadata.parse(info, collection)
        if plan.colbert and not metadata.colbert:
            raise ConfigurationError(f"collection `{collection}` has no ColBERT vectors")
        return cls(collection, metadata)

    @property
    def is_stale(self) -> bool:
        return time.monotonic() - self.resolved_at > ALIAS_TTL_SECONDS


class SearchRun:
    """One search: the next request from the responses so far. Does no I/O itself."""

    def __init__(
        self,
        plan: Plan,
        query: str,
        limit: int,
        filter: models.Filter | None,
        explain: bool,
        neighbours: int,
    ) -> None:
        checked_text(query, "query")
        if limit < 1:
            raise ConfigurationError(f"`limit` must be at least 1. Given: {limit}")
        if neighbours < 0:
            raise ConfigurationError(f"`neighbours` must be at least 0. Given: {neighbours}")
        self._plan, self._limit = plan, limit
        self._filter, self._explain, self._neighbours = filter, explain, neighbours
        self._stage_names: list[str] = []
        self._hits: list[Hit] = []
        self._tokens = self._points = 0
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def add_embeddings(self, embeddings: EmbedResult) -> None:
        self._embedding = embeddings[0]
        self._tokens += embeddings.usage.total_tokens
        self._record("embed")

    def requests(self, target: SearchTarget) -> list[models.QueryRequest]:
        """Return the query for the result, and to explain it one for each stage.

        Raises:
            FingerprintError: the collection holds vectors of another model than the query's.
        """
        target.metadata.check_fingerprint(self._embedding.fingerprint, target.collection)
        limit = max(self._limit, self._plan.rerank)
        if target.metadata.chunks:  # several may be of one document
            limit = max(limit, self._plan.candidates)
        stages = stage_requests(self._plan, self._embedding, target.metadata, limit, self._filter)
        self._stage_names = [*stages]
        final = query_request([*stages.values()][-1], limit, with_payload=True)
        return [final, *map(query_request, stages.values())] if self._explain else [final]

    def add_points(
        self, responses: Sequence[Sequence[models.ScoredPoint]], target: SearchTarget
    ) -> None:
        """Add the responses to `requests`. Of the chunks of a document, keep the best.

        Qdrant's groups would repeat the query without the documents so far, and ranks, of which
        RRF is made, would begin anew.
        """
        points, *stages = responses
        ranks = dict(zip(self._stage_names, map(_ranks, stages), strict=False))
        hits = []
        for point in points:
            payload = point.payload or {}
            text = text_at(payload, target.metadata.text_fields)
            explained = {name: by[point.id] for name, by in ranks.items() if point.id in by}
            hits.append(Hit(point.id, point.score, text, payload, explained))
        self._points = len(points)
        best: dict[PointId, Hit] = {}
        for hit in hits:
            best.setdefault(hit.document_point, hit)
        self._hits = [*best.values()]
        self._record("qdrant")

    def texts_to_rerank(self) -> list[str]:
        return [hit.text for hit in self._candidates() if hit.text]

    def add_ranking(self, ranking: RerankResult) -> None:
        """Put the reranked hits first. Hits without text follow, in their order."""
        candidates = self._candidates()
        reranked = []
        for rank, document in enumerate(ranking, 1):
            hit, score = candidates[document.index], document.relevance_score
            stages = {**hit.stages, RERANK: Stage(rank, score)} if self._explain else {}
            reranked.append(replace(hit, score=score, stages=stages))
        ids = {hit.id for hit in candidates}
        self._hits = reranked + [hit for hit in self._hits if hit.id not in ids]
        self._tokens += ranking.usage.total_tokens

    def cut_hits(self) -> list[PointId]:
        """Keep the best `limit` hits. Return the points of their neighbours."""
        if self._plan.rerank:
            self._record(RERANK)
        self._hits = self._hits[: self._limit]
        return [id for hit in self._hits for id in _neighbour_ids(hit, self._neighbours).values()]

    def add_neighbours(self, records: Sequence[models.Record]) -> None:
        """Add the points of `cut_hits` that exist."""
        chunks = {record.id: chunk_in(record.payload or {}) for record in records}
        for index, hit in enumerate(self._hits):
            ids = _neighbour_ids(hit, self._neighbours)
            texts = {
                number: chunk["text"] for number, id in ids.items() if (chunk := chunks.get(id))
            }
            self._hits[index] = replace(hit, neighbours=texts)
        self._record("neighbours")

    def result(self) -> SearchResult:
        return SearchResult(self._hits, self._seconds, self._tokens, self._points)

    def _candidates(self) -> list[Hit]:
        return [hit for hit in self._hits[: self._plan.rerank] if hit.text]

    def _record(self, step: str) -> None:
        """Record the time since the previous step."""
        now = time.perf_counter()
        self._seconds[step], self._last = now - self._last, now


def _ranks(points: Sequence[models.ScoredPoint]) -> dict[PointId, Stage]:
    return {point.id: Stage(rank, point.score) for rank, point in enumerate(points, 1)}


def _neighbour_ids(hit: Hit, count: int) -> dict[int, PointId]:
    """Return the points of the `count` chunks before and after a hit's, by number."""
    chunk = chunk_in(hit.payload)
    if chunk is None:
        return {}
    number = chunk["number"]
    numbers = [*range(max(0, number - count), number), *range(number + 1, number + 1 + count)]
    return {near: chunk_id(chunk["document"], near) for near in numbers}
