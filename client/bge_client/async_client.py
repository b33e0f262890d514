"""`Client` for asyncio. Needs the extra `async`."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

from .async_bulk import run_all, run_each
from .async_transport import AsyncTransport
from .calls import (
    HEALTH_TIMEOUT_SECONDS,
    BaseClient,
    Call,
    EmbedCall,
    RerankCall,
)
from .chunking import Chunks
from .codec import (
    Dtype,
    EmbedOptions,
    RerankOptions,
    checked_documents,
    checked_texts,
    iter_checked,
)
from .deadline import Deadline
from .protocol import fetch_health, fetch_info
from .results import Embedding, EmbedResult, Health, Info, RerankResult, merge, merge_rankings

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
        """Return the vectors of `texts` in order.

        `dtype` is the type on the wire. The default is float16 if `colbert` is true, which halves
        a large reply, else float32. `dense` is always float32; `colbert` keeps the wire type.

        Raises:
            ValidationError: a text is empty, blank or no string, or too long if not `truncate`.
            BGEError: see `errors.py`. The call returns all vectors or none.
        """
        options = EmbedOptions(dense, sparse, colbert, max_length, truncate, dtype)
        call = EmbedCall(options, self._expect_fingerprint)
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
        """Yield the vectors of each text in order, reading `texts` lazily.

        Memory is bounded: at most twice `max_in_flight` requests are queued or in flight. `timeout`
        applies to each request. Closing the iterator cancels the requests in flight.

        Raises:
            BGEError: as `embed`. The vectors of the texts before an invalid one are yielded first.
        """
        options = EmbedOptions(dense, sparse, colbert, max_length, truncate, dtype)
        call = EmbedCall(options, self._expect_fingerprint)
        chunks = await self._chunks(call, iter_checked(texts, "texts"), self._deadline(timeout))
        tasks = call.lazy_tasks(chunks, self._deadlines(timeout))
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
        """Return the documents by descending relevance to `query`. Ties keep their input order.

        A document is a string, or an object with a `text`.

        Raises:
            ConfigurationError: `top_n` is below 1.
            ValidationError: `query` or a document is empty, blank or no string.
            BGEError: see `errors.py`.
        """
        call = RerankCall(RerankOptions(query, top_n, raw_scores, max_length, truncate))
        rankings = await self._run_call(call, checked_documents(documents), timeout)
        return merge_rankings(rankings, top_n)

    async def info(self, timeout: float | None = None) -> Info:
        """Return the worker's models, device and limits: the contract's `info`."""
        deadline = self._deadline(timeout)
        return await self._transport.run(fetch_info(deadline), deadline)

    async def warm_up(self, timeout: float | None = None) -> Info:
        """Wait until a worker answers, however often that fails, and return its `info`.

        Raises:
            BGEError: no worker answers before the deadline, or the error is permanent.
        """
        deadline = self._deadline(timeout)
        return await self._transport.run(fetch_info(deadline, max_retries=math.inf), deadline)

    async def health(self, timeout: float = HEALTH_TIMEOUT_SECONDS) -> Health:
        """Return RunPod's `/health`: counts of `jobs` and `workers`. Starts no worker."""
        deadline = self._deadline(timeout)
        return await self._transport.run(fetch_health(deadline), deadline)

    async def _run_call(
        self, call: Call[Result], texts: list[str], timeout: float | None
    ) -> list[Result]:
        """Send all texts, and return the results of their chunks in order."""
        deadline = self._deadline(timeout)
        tasks = call.tasks(await self._chunks(call, texts, deadline), deadline)
        return await run_all(self._transport, tasks, self._max_in_flight)

    async def _chunks(self, call: Call[Result], texts: Iterable[str], deadline: Deadline) -> Chunks:
        """Split texts by the worker's limits; by the default ones, if they fit one chunk."""
        chunks = Chunks(texts, call.cost)
        if not chunks.is_single():
            chunks.limits = await self._transport.run(self._worker_limits(deadline), deadline)
        return chunks
