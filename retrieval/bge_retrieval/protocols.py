"""What an asynchronous search needs of its client. `bge_client.AsyncClient` has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from bge_client import EmbedResult, RerankResult


class AsyncReranker(Protocol):
    async def rerank(self, query: str, documents: Sequence[str]) -> RerankResult:
        """Return the documents by descending relevance to `query`."""


class AsyncEmbedder(AsyncReranker, Protocol):
    async def embed(
        self, texts: str, *, dense: bool, sparse: bool, colbert: bool, dtype: Literal["float32"]
    ) -> EmbedResult:
        """Return the vectors of `texts`."""
