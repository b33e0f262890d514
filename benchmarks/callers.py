"""Concurrent callers of an HTTP server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import asynccontextmanager
from time import perf_counter
from typing import NamedTuple

import aiohttp


class Response(NamedTuple):
    """`status`: a number, or the name of the error that left the request without a response."""

    status: str
    content: bytes
    headers: Mapping[str, str]


class Callers:
    """Send requests, and record their statuses and the times of those that were answered."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self.responses: Counter[tuple[str, str]] = Counter()  # by route and status
        self.milliseconds: list[float] = []  # of responses with status 200

    async def post(self, route: str, body: str, due: float | None = None) -> Response:
        """Send a request. Its time counts from `due`, by default from now."""
        start = perf_counter() if due is None else due
        try:
            async with self._session.post(route, data=body) as reply:
                response = Response(str(reply.status), await reply.read(), reply.headers)
        except (aiohttp.ClientError, TimeoutError) as error:
            response = Response(type(error).__name__, b"", {})
        self.responses[route, response.status] += 1
        if response.status == "200":
            self.milliseconds.append(1e3 * (perf_counter() - start))
        return response

    async def run(self, count: int, requests: Iterator[Awaitable[object]]) -> float:
        """Share the requests among `count` callers, each with one in flight. Return the seconds."""

        async def caller() -> None:
            for request in requests:
                await request

        start = perf_counter()
        await asyncio.gather(*(caller() for _ in range(count)))
        return perf_counter() - start

    def statuses(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for (_, status), count in self.responses.items():
            counts[status] += count
        return dict(counts)


@asynccontextmanager
async def open_callers(url: str, timeout: float = 300) -> AsyncIterator[Callers]:
    """Callers of the server at `url`, with any number of connections."""
    async with aiohttp.ClientSession(
        url,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=timeout),
        headers={"Content-Type": "application/json"},
    ) as session:
        yield Callers(session)


def during(seconds: float) -> Iterator[None]:
    """Yield until the time is over."""
    end = perf_counter() + seconds
    while perf_counter() < end:
        yield
