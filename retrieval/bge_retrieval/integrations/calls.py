"""What the integrations share: synchronous and asynchronous calls, and arrays as lists."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qdrant_client import models

from bge_client import Client, Embedding, RankedDocument

from ..async_search import AsyncHybridSearch
from ..results import SearchResult
from ..schema import present
from ..search import HybridSearch

if TYPE_CHECKING:  # the extra `async`
    from bge_client import AsyncClient


@dataclass(frozen=True)
class ModelCalls:
    """Calls of both models. Without `async_client`, asynchronous calls run `client` in a thread.

    No texts give an empty list, without a request.

    Raises:
        BGEError: as the client's.
    """

    client: Client
    async_client: AsyncClient | None = None

    def embed(
        self, texts: Sequence[str], *, dense: bool = False, sparse: bool = False
    ) -> list[Embedding]:
        return list(self.client.embed(texts, dense=dense, sparse=sparse)) if texts else []

    async def aembed(
        self, texts: Sequence[str], *, dense: bool = False, sparse: bool = False
    ) -> list[Embedding]:
        if self.async_client is None:
            return await asyncio.to_thread(self.embed, texts, dense=dense, sparse=sparse)
        if not texts:
            return []
        return list(await self.async_client.embed(texts, dense=dense, sparse=sparse))

    def rerank(self, query: str, texts: Sequence[str], top_n: int) -> list[RankedDocument]:
        return self.client.rerank(query, texts, top_n=top_n) if texts else []

    async def arerank(self, query: str, texts: Sequence[str], top_n: int) -> list[RankedDocument]:
        if self.async_client is None:
            return await asyncio.to_thread(self.rerank, query, texts, top_n)
        return await self.async_client.rerank(query, texts, top_n=top_n) if texts else []


async def search_async(
    search: HybridSearch,
    async_search: AsyncHybridSearch | None,
    query: str,
    limit: int,
    filter: models.Filter | None,
) -> SearchResult:
    """Search with `async_search`, or without one with `search` in a thread."""
    if async_search is None:
        return await asyncio.to_thread(search.search, query, limit, filter=filter)
    return await async_search.search(query, limit, filter=filter)


def dense_list(embedding: Embedding) -> list[float]:
    """Return the dense vector, of the model's dimensions."""
    vector: list[float] = present(embedding.dense).tolist()
    return vector


def sparse_lists(embedding: Embedding) -> tuple[list[int], list[float]]:
    """Return the token ids of the sparse vector, and their weights."""
    indices, values = present(embedding.sparse)
    return indices.tolist(), values.tolist()
