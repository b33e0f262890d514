"""Calls of many chunks: threads and tasks in flight, memory, interruptions, the exit."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bge_client import Client, errors, protocol
from bge_client.chunking import MAX_CHUNK_TEXTS, Limits
from conftest import ROOT
from fakes.clients import CLIENTS
from fakes.scripted import Queue, Scripted, completed, job, silence, vector_of

SYNC, POLL, CANCEL = "POST /runsync", "GET /status/job-1", "POST /cancel/job-1"
MAX_IN_FLIGHT = 4


@pytest.fixture
def endpoint() -> Iterator[Scripted]:
    with Scripted() as endpoint:
        endpoint.on(SYNC, completed)
        endpoint.on(CANCEL, job("CANCELLED"))
        yield endpoint


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, endpoint: Scripted) -> Iterator[Any]:
    connect = CLIENTS[request.param]
    with connect(endpoint.url, timeout=60, max_in_flight=MAX_IN_FLIGHT) as client:
        yield client


def wait_until(condition: Any) -> None:
    end_time = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end_time
        time.sleep(0.01)


def test_20_000_texts_come_back_in_order_with_few_read_ahead(
    client: Any, endpoint: Scripted
) -> None:
    count, read, lock, in_flight, most = 20_000, 0, threading.Lock(), 0, 0

    def counted(exchange: Any) -> None:
        nonlocal in_flight, most
        with lock:
            in_flight += 1
            most = max(most, in_flight)
        completed(exchange)
        with lock:
            in_flight -= 1

    def texts() -> Iterator[str]:
        nonlocal read
        for read in range(1, count + 1):
            yield f"текст {read - 1}"

    endpoint.on(SYNC, counted)
    read_ahead = 0
    for number, embedding in enumerate(client.embed_iter(texts())):
        read_ahead = max(read_ahead, read - number)
        if number % 97 == 0:
            np.testing.assert_array_equal(embedding.dense, vector_of(f"текст {number}"))
    assert number + 1 == count
    # The chunks in flight or queued, the one that is yielded and the one that is read.
    assert read_ahead <= (2 * MAX_IN_FLIGHT + 2) * MAX_CHUNK_TEXTS
    assert most <= MAX_IN_FLIGHT


def test_closing_the_iterator_cancels_its_jobs(client: Any, endpoint: Scripted) -> None:
    queue = Queue(endpoint, "текст 0")
    vectors = client.embed_iter(f"текст {number}" for number in range(5000))
    next(vectors)
    wait_until(lambda: queue.submitted and queue.polled == queue.submitted)
    vectors.close()
    wait_until(lambda: queue.cancelled == queue.submitted)


def test_failed_chunk_cancels_the_jobs_of_the_others(client: Any, endpoint: Scripted) -> None:
    def last_refused(exchange: Any) -> None:
        texts = exchange.payload.get("texts", [])
        if not texts:
            completed(exchange)
        elif "текст 999" in texts:
            wait_until(lambda: endpoint.routes().count(POLL) >= 6)
            exchange.reply(401, b"{}")
        else:
            job("IN_PROGRESS")(exchange)

    endpoint.on(SYNC, last_refused)
    endpoint.on(POLL, job("IN_PROGRESS"))
    with pytest.raises(errors.AuthenticationError):
        client.embed([f"текст {number}" for number in range(1000)])
    wait_until(lambda: endpoint.routes().count(CANCEL) == 3)


@pytest.mark.parametrize("count", [1, 1000])
def test_interrupt_cancels_the_job(count: int, endpoint: Scripted) -> None:
    def interrupt(exchange: Any) -> None:
        job("IN_QUEUE")(exchange)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    endpoint.on(SYNC, job("IN_QUEUE"))
    endpoint.on(POLL, interrupt, job("IN_QUEUE"))
    with Client(endpoint.url) as client:
        client._limits = Limits()  # `info` would be interrupted
        with pytest.raises(KeyboardInterrupt):
            client.embed([f"текст {number}" for number in range(count)])
    wait_until(lambda: CANCEL in endpoint.routes())


ABANDONED = """
import sys
from bge_client import Client

client = Client(sys.argv[1])
vectors = client.embed_iter(f"text {number}" for number in range(10_000))
next(vectors)
next(vectors)
print("done", flush=True)
"""


def test_abandoned_iterator_does_not_keep_the_interpreter(endpoint: Scripted) -> None:
    def silent_after_the_first(exchange: Any) -> None:
        is_first = "text 0" in exchange.payload.get("texts", ["text 0"])
        (completed if is_first else silence)(exchange)

    endpoint.on(SYNC, silent_after_the_first)
    abandon(endpoint)


def test_jobs_of_an_abandoned_iterator_are_cancelled(endpoint: Scripted) -> None:
    queue = Queue(endpoint, "text 0")
    abandon(endpoint)
    assert queue.cancelled == queue.submitted != set()


def abandon(endpoint: Scripted) -> None:
    run = subprocess.run(
        [sys.executable, "-c", ABANDONED, endpoint.url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=protocol.RUNSYNC_WAIT_SECONDS,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "done\n", "")
