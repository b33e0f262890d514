"""Services and the HTTP server around them, in this process, on loopback."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp

from bge_worker.engine.engine import Engine
from bge_worker.errors import WorkerError
from bge_worker.http.app import Application
from bge_worker.http.connections import ConnectionLimits
from bge_worker.http.memory import HeldBytes
from bge_worker.http.metrics import Metrics
from bge_worker.http.server import configuration
from bge_worker.http.timeouts import Timeouts
from bge_worker.serving.payload import answer_payload
from bge_worker.serving.service import Service
from bge_worker.settings import Settings
from fakes.engine import SOON

DEFAULT_TIMEOUTS = Timeouts()
TEXTS = ["Градиентный спуск ищет минимум функции.", "A transaction is all or nothing."]
QUERY = "минимум функции"
KEY = "a-key-of-the-tests"
EMBED_MODEL, RERANK_MODEL = "miniature/bge-m3", "miniature/bge-reranker-v2-m3"
RERANK = {"query": "q", "documents": ["one", "three"]}  # the fake engine's logit is the length


def answer(service: Service, payload: object) -> dict[str, Any]:
    """Return the reply to the `input` of a job; it must be strict JSON."""
    reply = asyncio.run(answer_payload(service, payload)).body
    json.dumps(reply, allow_nan=False)
    return reply


def refusal(service: Service, payload: object) -> str:
    with pytest.raises(WorkerError) as caught:
        answer(service, payload)
    return str(caught.value)


@contextmanager
def serving(
    engine: Engine,
    settings: Settings,
    *,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    listener: socket.socket | None = None,
    max_connections: int = 1000,
    held: HeldBytes | None = None,
) -> Iterator[str]:
    """Yield the base URL of a server with the loaded engine."""
    metrics = Metrics()
    service = Service(engine, settings, metrics.computed)
    metrics.watch(service)
    loaded: Future[Service] = Future()
    loaded.set_result(service)
    app = Application(settings, metrics, loaded, timeouts, held).asgi
    try:
        listener = listener or socket.create_server(("127.0.0.1", 0))
        with listening(app, listener, timeouts, max_connections=max_connections) as url:
            yield url
    finally:
        service.close(timeout=10)


@contextmanager
def listening(
    app: ASGIApp,
    listener: socket.socket,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    close_seconds: int = 1,
    max_connections: int = 1000,
) -> Iterator[str]:
    """Yield the base URL of an application in the server's own configuration."""
    limits = ConnectionLimits(max_connections)
    server = uvicorn.Server(configuration(app, limits, timeouts, close_seconds))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    """Yield a bare connection to the server."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=SOON) as connection:
        yield connection


def metric(url: str, name: str) -> float:
    """Return the value of a metric, named with its labels; 0 if there is none."""
    text = httpx.get(f"{url}/metrics").text
    lines = [line.rsplit(" ", 1) for line in text.splitlines()]
    return sum(float(line[1]) for line in lines if line[0] == name)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
