"""Bytes of bodies and replies are counted while they are held, and limited."""

from __future__ import annotations

import socket
from collections.abc import Callable

import httpx

from bge_worker.engine.engine import Engine
from bge_worker.http.memory import HeldBytes
from bge_worker.settings import Settings
from fakes.engine import FakeEngine
from fakes.serving import connected, eventually, serving


def test_bodies_of_waiting_jobs_count_until_they_have_run(
    serve: Callable[..., str], engine: FakeEngine
) -> None:
    held = HeldBytes(limit=1_300_000)
    url = serve(held=held, concurrency=3)
    engine.gate.clear()
    large = {"input": {"query": "q", "documents": ["a" * 300_000]}}
    jobs = [httpx.post(f"{url}/run", json=large).json()["id"] for _ in range(3)]
    refused = httpx.post(f"{url}/run", json=large)
    assert refused.status_code == 429
    assert "bytes of requests and replies are held, of 1300000" in refused.text
    engine.gate.set()
    paths = [f"{url}/status/{job_id}" for job_id in jobs]
    eventually(lambda: {httpx.get(path).json()["status"] for path in paths} == {"COMPLETED"})
    eventually(lambda: held.held == 0)
    assert httpx.post(f"{url}/run", json=large).status_code == 200


def test_replies_count_until_they_are_sent(packed: Engine) -> None:
    held = HeldBytes(limit=50_000_000)
    with serving(packed, Settings(max_reply_bytes=100_000_000), held=held) as url:
        body = {"input": {"texts": ["море " * 200] * 10, "return_colbert": True}}
        job_id = httpx.post(f"{url}/runsync", json=body, timeout=60).json()["id"]  # some 35 MB
        with connected(url) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(f"GET /status/{job_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            eventually(lambda: held.held > 25_000_000)
            assert httpx.get(f"{url}/status/{job_id}").status_code == 429
            assert httpx.get(f"{url}/ping").status_code == 200
        eventually(lambda: held.held == 0)
        assert httpx.get(f"{url}/status/{job_id}").status_code == 200
