"""Hybrid search for asyncio. See `search.py`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from qdrant_client import models

from bge_client import HTTPStatusError

from .async_store import AsyncStore
from .plan import Plan
from .results import SearchResult
from .search_run import SearchRun, SearchTarget

if TYPE_CHECKING:  # the extra `async`
    from bge_client import AsyncClient


class AsyncHybridSearch:
    """`HybridSearch` for asyncio. Tasks may share it.

    The first search resolves the name. Await `resolve` at the start to learn early that a
    collection is missing.
    """

    def __init__(
        self,
        store: AsyncStore,
        client: AsyncClient,
        collection: str,
        plan: Plan | None = None,
        *,
        reranker: AsyncClient | None = None,
    ) -> None:
        self._store, self._client = store, client
        self._reranker = reranker or client
        self._name = collection
        self._plan = plan or Plan()
        self._resolving = asyncio.Lock()
        self._target: SearchTarget | None = None

    async def search(
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
        target = await self._current_target()
        run = SearchRun(self._plan, query, limit, filter, explain, neighbours)
        run.add_embeddings(await self._client.embed(query, **self._plan.embed_options))
        try:
            points = await self._query(target, run)
        except HTTPStatusError as error:
            moved = await self._moved_target(target) if error.status == 404 else None
            if moved is None:
                raise
            target = moved
            points = await self._query(target, run)
        run.add_points(points, target)
        if texts := run.texts_to_rerank():
            run.add_ranking(await self._reranker.rerank(query, texts))
        if ids := run.cut_hits():
            run.add_neighbours(await self._store.retrieve(target.collection, ids))
        return run.result()

    async def resolve(self) -> SearchTarget:
        """Resolve the name now. Return its collection and metadata.

        Raises:
            ConfigurationError: the collection does not exist, or lacks vectors that the plan needs.
            FingerprintError: the collection has no metadata.
        """
        collection = await self._store.resolve(self._name)
        info = await self._store.info(collection)
        self._target = SearchTarget.checked(collection, info, self._plan)
        return self._target

    async def _query(self, target: SearchTarget, run: SearchRun) -> list[list[models.ScoredPoint]]:
        requests = run.requests(target)
        return [await self._store.query_points(target.collection, request) for request in requests]

    async def _current_target(self) -> SearchTarget:
        """Resolve a stale target, unless another task is at it. The first search waits for it."""
        target = self._target
        if target is not None and (not target.is_stale or self._resolving.locked()):
            return target
        async with self._resolving:
            target = self._target
            return await self.resolve() if target is None or target.is_stale else target

    async def _moved_target(self, dropped: SearchTarget) -> SearchTarget | None:
        """Return the new collection of the alias, or None if it has not moved.

        Tasks wait here for the first one to resolve.
        """
        async with self._resolving:
            target = self._target
            if target is None or target.collection == dropped.collection:
                target = await self.resolve()
            return target if target.collection != dropped.collection else None
