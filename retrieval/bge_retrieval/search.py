"""Hybrid search: dense and sparse candidates, fused, rescored by MaxSim, reranked; as planned.

    query ─ one embed call ─┬─ dense  ─┐
                            ├─ sparse ─┴─ RRF or DBSF ─ MaxSim over colbert ─ cross-encoder
                            └─ colbert ───────────────────┘

Everything up to MaxSim is one request to Qdrant; the cross-encoder is one request to the worker.
"""

from __future__ import annotations

import threading

from qdrant_client import models

from bge_client import Client, HTTPStatusError

from . import fork
from .metadata import CollectionMetadata
from .plan import Plan
from .results import SearchResult
from .search_run import Reranker, SearchRun, SearchTarget
from .store import Store


class HybridSearch:
    """Searches a collection or the collection behind an alias. Threads may share it.

    `reranker` is another endpoint or a provider for reranking; by default `client`.

    Queries go to the collection itself, so that an alias that moves cannot mix the vectors of one
    collection with the metadata of another. The name is resolved at the start, by a search more
    than 5 seconds later, and when Qdrant no longer knows the collection (404). While one thread
    resolves after 5 seconds, the others go on with the collection they know. So a search may use
    the previous collection for 5 seconds, and after a pause until the first search has resolved.

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
        reranker: Reranker | None = None,
    ) -> None:
        self._store, self._client = store, client
        self._reranker: Reranker = reranker or client
        self._name = collection
        self._plan = plan or Plan()
        self._resolving = threading.Lock()
        fork.register(self)
        self.resolve()

    def renew_after_fork(self) -> None:
        """Replace the lock. Called in the child of a fork."""
        self._resolving = threading.Lock()

    @property
    def collection(self) -> str:
        """The collection that is searched."""
        return self._target.collection

    @property
    def metadata(self) -> CollectionMetadata:
        return self._target.metadata

    def search(
        self,
        query: str,
        limit: int = 10,
        *,
        filter: models.Filter | None = None,
        explain: bool = False,
        neighbours: int = 0,
    ) -> SearchResult:
        """Return the best `limit` points that pass the filter; of chunks, a document's best one.

        There may be fewer than `limit` documents of chunks among the plan's candidates.
        `neighbours` adds the texts of so many chunks before and after each hit, at one request.
        `explain` adds each hit's rank in every stage, at one more request for each stage. Hits
        after the reranked ones keep their retrieval score.

        Raises:
            FingerprintError: the endpoint serves another model than the collection's.
            BGEError: see `errors.py`.
        """
        target = self._current_target()
        run = SearchRun(self._plan, query, limit, filter, explain, neighbours)
        run.add_embeddings(self._client.embed(query, **self._plan.embed_options))
        try:
            points = self._query(target, run)
        except HTTPStatusError as error:
            moved = self._moved_target(target) if error.status == 404 else None
            if moved is None:
                raise
            target = moved
            points = self._query(target, run)
        run.add_points(points, target)
        if texts := run.texts_to_rerank():
            run.add_ranking(self._reranker.rerank(query, texts))
        if ids := run.cut_hits():
            run.add_neighbours(self._store.retrieve(target.collection, ids))
        return run.result()

    def resolve(self) -> SearchTarget:
        """Resolve the name now. Return its collection and metadata.

        Raises:
            ConfigurationError: the collection does not exist, or lacks vectors that the plan needs.
            FingerprintError: the collection has no metadata.
        """
        collection = self._store.resolve(self._name)
        info = self._store.info(collection)
        self._target = SearchTarget.checked(collection, info, self._plan)
        return self._target

    def _query(self, target: SearchTarget, run: SearchRun) -> list[list[models.ScoredPoint]]:
        requests = run.requests(target)
        return [self._store.query_points(target.collection, request) for request in requests]

    def _current_target(self) -> SearchTarget:
        """Resolve a stale target, unless another thread is at it."""
        if not self._target.is_stale or not self._resolving.acquire(blocking=False):
            return self._target
        try:
            return self.resolve() if self._target.is_stale else self._target
        finally:
            self._resolving.release()

    def _moved_target(self, dropped: SearchTarget) -> SearchTarget | None:
        """Return the new collection of the alias, or None if it has not moved.

        Threads wait here for the first one to resolve.
        """
        with self._resolving:
            if self._target.collection == dropped.collection:
                self.resolve()
            return self._target if self._target.collection != dropped.collection else None
