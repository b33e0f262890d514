"""A server whose models are loading, or could not be loaded."""

from __future__ import annotations

import socket
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx

from bge_worker.errors import StartError
from bge_worker.http.app import Application
from bge_worker.http.metrics import Metrics
from bge_worker.serving.service import Service
from bge_worker.settings import Settings
from fakes.engine import SOON, FakeEngine
from fakes.serving import RERANK, eventually, listening


def test_requests_wait_while_the_models_load() -> None:
    service: Future[Service] = Future()
    app = Application(Settings(), Metrics(), service).asgi
    with (
        listening(app, socket.create_server(("127.0.0.1", 0))) as url,
        closing(Service(FakeEngine(), Settings())) as loaded,
        ThreadPoolExecutor(1) as pool,
    ):
        assert httpx.get(f"{url}/ping").status_code == 204
        assert httpx.get(f"{url}/health").json()["workers"]["initializing"] == 1
        early = pool.submit(httpx.post, f"{url}/native/rerank", json=RERANK, timeout=SOON)
        eventually(early.running)
        service.set_result(loaded)
        assert early.result().status_code == 200
        assert httpx.get(f"{url}/ping").status_code == 200


def test_a_failed_load_makes_the_server_unhealthy() -> None:
    service: Future[Any] = Future()
    service.set_exception(StartError("no such folder"))
    app = Application(Settings(), Metrics(), service).asgi
    with listening(app, socket.create_server(("127.0.0.1", 0))) as url:
        assert httpx.get(f"{url}/ping").status_code == 503
        assert httpx.get(f"{url}/health").json()["workers"]["unhealthy"] == 1
        refused = httpx.post(f"{url}/v1/embeddings", json={"input": "a", "model": "b"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "InferenceError")
