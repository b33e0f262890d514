"""What only asyncio has: cancelled tasks, iterators that are left, event loops, concurrency."""

from __future__ import annotations

import asyncio
import gc
import inspect
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any

import httpx2
import numpy as np
import pytest

import bge_client
from bge_client import AsyncClient, Client, errors
from fakes.scripted import Queue, Scripted, completed, job, silence, vector_of

SYNC, POLL, CANCEL = "POST /runsync", "GET /status/job-1", "POST /cancel/job-1"
METHODS = ("embed", "embed_iter", "rerank", "info", "health", "warm_up", "post")


@pytest.fixture
def endpoint() -> Iterator[Scripted]:
    with Scripted() as endpoint:
        endpoint.on(SYNC, completed)
        endpoint.on(POLL, job("IN_QUEUE"))
        endpoint.on(CANCEL, job("CANCELLED"))
        yield endpoint


def run(endpoint: Scripted, body: Callable[[AsyncClient], Coroutine[Any, Any, None]]) -> None:
    """Run `body` with a client."""

    async def main() -> None:
        async with AsyncClient(endpoint.url, timeout=30) as client:
            await body(client)

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


# ---------------------------------------------------------------------------- the interface


@pytest.mark.parametrize("method", ["__init__", *METHODS])
def test_methods_are_those_of_the_blocking_client(method: str) -> None:
    blocking, asynchronous = (getattr(kind, method) for kind in (Client, AsyncClient))
    parameters = [
        [(p.name, p.kind, p.default, p.name == "session" or p.annotation) for p in signature]
        for signature in (
            inspect.signature(function).parameters.values() for function in (blocking, asynchronous)
        )
    ]
    assert parameters[0] == parameters[1]
    returned = inspect.signature(blocking).return_annotation
    returned = returned.replace(
        "Generator[Embedding, None, None]", "AsyncGenerator[Embedding, None]"
    )
    assert inspect.signature(asynchronous).return_annotation == returned


def test_clients_have_the_same_public_names() -> None:
    names = [{name for name in vars(kind) if name[0] != "_"} for kind in (Client, AsyncClient)]
    assert names[0] - {"close"} == names[1] - {"aclose"} == set(METHODS)


WITHOUT_HTTPX2 = """
import sys
import bge_client
assert "httpx2" not in sys.modules and "anyio" not in sys.modules and "asyncio" not in sys.modules
sys.modules["httpx2"] = None
try:
    bge_client.AsyncClient
except ImportError as error:
    print(error)
"""


def test_missing_extra_is_named() -> None:
    command = [sys.executable, "-c", WITHOUT_HTTPX2]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out == "AsyncClient needs httpx2: pip install 'bge-client[async]'\n"
    with pytest.raises(AttributeError, match="no attribute 'Asynclient'"):
        bge_client.Asynclient  # type: ignore[attr-defined]  # noqa: B018


# ------------------------------------------------------------------------------ cancellation


@pytest.mark.parametrize("count", [1, 1000])
def test_cancelled_task_cancels_its_jobs(count: int, endpoint: Scripted) -> None:
    queue = Queue(endpoint)
    texts = [f"текст {number}" for number in range(count)]

    async def body(client: AsyncClient) -> None:
        call = asyncio.create_task(client.embed(texts))
        await until(lambda: len(queue.polled) == (4 if count == 1000 else 1))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert queue.cancelled == queue.submitted

    run(endpoint, body)


def test_timeout_of_the_caller_cancels_the_job(endpoint: Scripted) -> None:
    endpoint.on(SYNC, job("IN_QUEUE"))

    async def body(client: AsyncClient) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.embed("море"), 0.5)
        assert CANCEL in endpoint.routes()

    run(endpoint, body)


def test_second_cancellation_does_not_stop_the_cancel_request(endpoint: Scripted) -> None:
    received = threading.Event()

    def slow_cancel(exchange: Any) -> None:
        received.set()
        time.sleep(0.3)
        job("CANCELLED")(exchange)

    endpoint.on(SYNC, job("IN_QUEUE"))
    endpoint.on(CANCEL, slow_cancel)

    async def body(client: AsyncClient) -> None:
        call = asyncio.create_task(client.embed("море"))
        await until(lambda: POLL in endpoint.routes())
        call.cancel()
        await until(received.is_set)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    run(endpoint, body)


def test_cancellation_before_a_job_is_known_is_immediate(endpoint: Scripted) -> None:
    endpoint.on(SYNC, silence)

    async def body(client: AsyncClient) -> None:
        call = asyncio.create_task(client.embed("море"))
        await until(lambda: SYNC in endpoint.routes())
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    run(endpoint, body)
    assert endpoint.routes() == [SYNC]


def test_leaving_the_iterator_cancels_its_jobs(endpoint: Scripted) -> None:
    queue = Queue(endpoint, "текст 0")

    async def body(client: AsyncClient) -> None:
        texts = (f"текст {number}" for number in range(10_000))
        async with aclosing(client.embed_iter(texts)) as vectors:
            async for embedding in vectors:
                np.testing.assert_array_equal(embedding.dense, vector_of("текст 0"))
                break
            await until(lambda: queue.submitted and queue.polled == queue.submitted)
        assert queue.cancelled == queue.submitted
        assert len(asyncio.all_tasks()) == 1

    run(endpoint, body)


# ------------------------------------------------------------------------- loops, concurrency


def test_500_concurrent_calls_are_answered(endpoint: Scripted) -> None:
    async def body(client: AsyncClient) -> None:
        texts = [f"текст {number}" for number in range(500)]
        results = await asyncio.gather(*(client.embed(text) for text in texts))
        for text, result in zip(texts, results, strict=True):
            np.testing.assert_array_equal(result.dense, [vector_of(text)])

    run(endpoint, body)


def test_event_loop_goes_on_during_a_large_call(endpoint: Scripted) -> None:
    async def body(client: AsyncClient) -> None:
        gaps = []

        async def tick() -> None:
            last = time.perf_counter()
            while True:
                await asyncio.sleep(0)
                now = time.perf_counter()
                gaps.append(now - last)
                last = now

        ticker = asyncio.create_task(tick())
        texts = [f"текст {number} " + "x" * 2000 for number in range(5000)]
        async with aclosing(client.embed_iter(texts)) as vectors:
            assert sum([1 async for _ in vectors]) == 5000
        ticker.cancel()
        assert max(gaps) < 1  # a chunk is encoded and decoded in some milliseconds

    run(endpoint, body)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # sockets of the first event loop
def test_client_works_in_one_event_loop_after_another(endpoint: Scripted) -> None:
    client = AsyncClient(endpoint.url)

    async def body() -> None:
        result = await client.embed("море")
        np.testing.assert_array_equal(result.dense, [vector_of("море")])

    async def last() -> None:
        async with client:
            await body()

    asyncio.run(body())
    asyncio.run(last())
    gc.collect()


def test_closed_client_opens_new_connections(endpoint: Scripted) -> None:
    async def body(client: AsyncClient) -> None:
        for _ in range(2):
            await client.embed("море")
            await client.aclose()

    run(endpoint, body)
    assert len({seen.handler.client_address for seen in endpoint.seen}) == 2


def test_passed_session_is_used_and_left_open(endpoint: Scripted) -> None:
    async def body(client: AsyncClient) -> None:
        async with httpx2.AsyncClient(headers={"X-Name": "passed"}) as session:
            async with AsyncClient(endpoint.url, "k3y", session=session) as client:
                await client.embed("море")
            assert not session.is_closed
        (seen,) = endpoint.seen
        assert seen.headers["X-Name"] == "passed"
        assert seen.headers["Authorization"] == "Bearer k3y"

    run(endpoint, body)


def test_deadline_counts_the_wait_for_a_connection(endpoint: Scripted) -> None:
    endpoint.on(SYNC, silence)

    async def body(client: AsyncClient) -> None:
        limits = httpx2.Limits(max_connections=1)
        async with httpx2.AsyncClient(limits=limits) as session:
            narrow = AsyncClient(endpoint.url, session=session, timeout=0.5)
            calls = [narrow.embed("море") for _ in range(3)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(result) for result in results] == [errors.DeadlineError] * 3

    run(endpoint, body)
