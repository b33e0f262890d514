"""`Client` for asyncio. Needs the extra `async`."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from .async_bulk import run_all, run_each
from .async_transport import AsyncTransport
from .calls import HEALTH_TIMEOUT_SECONDS, BaseClient, Call, EmbedCall, RerankCall
from .codec import (
    Dtype,
    EmbedOptions,
    RerankOptions,
    checked_documents,
    checked_texts,
    iter_checked,
)
from .protocol import INFO, JSONObject, post_value
from .results import Embedding, EmbedResult, RerankResult, merge, merge_rankings
from .retry import RETRIES

if TYPE_CHECKING:
    import httpx2

Result = TypeVar("Result")


class AsyncClient(BaseClient):
    """The client of one endpoint for asyncio. Its arguments and methods are those of `Client`.

    Tasks may share a client. In another event loop, or in the child of a fork, it opens new
    connections. `embed_iter` reads `texts` in the event loop: they should not block. Leave it by
    `contextlib.aclosing`, as any asynchronous generator, to cancel its requests at once.

        async with AsyncClient("http://127.0.0.1:8000") as client:
            result = await client.embed(["море", "суша"])

    Raises:
        ConfigurationError: an argument is invalid.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 300.0,
        max_in_flight: int = 8,
        session: httpx2.AsyncClient | None = None,
        expect_fingerprint: str | None = None,
    ) -> None:
        super().__init__(endpoint, api_key, timeout, max_in_flight, expect_fingerprint)
        self._transport = AsyncTransport(self._url, self._key, session)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, except those of a `session` that you passed."""
        await self._transport.aclose()

    async def embed(
        self,
        texts: str | Iterable[str],
        *,
        dense: bool = True,
        sparse: bool = False,
        colbert: bool = False,
        max_length: int | None = None,
        truncate: bool = True,
        dtype: Dtype | None = None,
        timeout: float | None = None,
    ) -> EmbedResult:
        """See `Client.embed`."""
        options = EmbedOptions(dense, sparse, colbert, max_length, truncate, dtype)
        call = EmbedCall(options, self._infer, self._expect_fingerprint)
        return merge(await self._run_call(call, checked_texts(texts, "texts"), timeout))

    async def embed_iter(
        self,
        texts: str | Iterable[str],
        *,
        dense: bool = True,
        sparse: bool = False,
        colbert: bool = False,
        max_length: int | None = None,
        truncate: bool = True,
        dtype: Dtype | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[Embedding, None]:
        """See `Client.embed_iter`."""
        options = EmbedOptions(dense, sparse, colbert, max_length, truncate, dtype)
        call = EmbedCall(options, self._infer, self._expect_fingerprint)
        deadline = self._deadline(timeout)
        exchange = self._split(call, iter_checked(texts, "texts"), deadline)
        chunks = await self._transport.run(exchange, deadline)
        tasks = call.tasks(chunks, lambda: self._deadline(timeout))
        async with aclosing(run_each(self._transport, tasks, self._max_in_flight)) as results:
            async for result in results:
                for embedding in result:
                    yield embedding

    async def rerank(
        self,
        query: str,
        documents: Iterable[str | Mapping[str, object]],
        *,
        top_n: int | None = None,
        raw_scores: bool = False,
        max_length: int | None = None,
        truncate: bool = True,
        timeout: float | None = None,
    ) -> RerankResult:
        """See `Client.rerank`."""
        options = RerankOptions(query, top_n, raw_scores, max_length, truncate)
        call = RerankCall(options, self._infer)
        rankings = await self._run_call(call, checked_documents(documents), timeout)
        return merge_rankings(rankings, top_n)

    async def info(self, timeout: float | None = None) -> dict[str, object]:
        """See `Client.info`."""
        deadline = self._deadline(timeout)
        return await self._transport.run(self._infer(deadline, INFO, RETRIES), deadline)

    async def warm_up(self, timeout: float | None = None) -> dict[str, object]:
        """See `Client.warm_up`."""
        deadline = self._deadline(timeout)
        return await self._transport.run(self._infer(deadline, INFO, math.inf), deadline)

    async def health(self, timeout: float = HEALTH_TIMEOUT_SECONDS) -> dict[str, object]:
        """See `Client.health`."""
        deadline = self._deadline(timeout)
        return await self._transport.run(self._request_health(deadline), deadline)

    async def post(self, path: str, body: JSONObject, *, timeout: float | None = None) -> Any:
        """See `Client.post`."""
        deadline = self._deadline(timeout)
        return await self._transport.run(post_value(deadline, path, body), deadline)

    async def _run_call(
        self, call: Call[Result], texts: list[str], timeout: float | None
    ) -> list[Result]:
        """Send all texts, and return the results of their chunks in order."""
        deadline = self._deadline(timeout)
        chunks = await self._transport.run(self._split(call, texts, deadline), deadline)
        tasks = list(call.tasks(chunks, lambda: deadline))
        return await run_all(self._transport, tasks, self._max_in_flight)
