"""Worker and client share no code: the client decodes every form of the worker's replies."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from itertools import product
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from bge_client import Client, errors, retry
from bge_worker.engine.engine import Engine
from bge_worker.settings import Settings
from conftest import ROOT, settings_in
from fakes.clients import CLIENTS
from fakes.engine import ALL_VECTORS
from fakes.loopback import LoopbackServer
from fakes.runpod_server import JobServer
from fakes.serving import serving
from fakes.worker_process import WorkerProcess

TEXTS = ["Градиентный спуск ищет минимум функции.", "A transaction is all or nothing.", "море"]


@pytest.fixture(scope="module")
def server(packed: Engine) -> Iterator[str]:
    with serving(packed, Settings(max_reply_bytes=100_000_000)) as url:
        yield url


@pytest.fixture(scope="module")
def runpod(runtimes: Any) -> Iterator[str]:
    """The SDK's own loop around `handler.py`, behind a stand-in of RunPod's API."""
    models = settings_in(runtimes("packed"))
    env = {"BGE_EMBED_MODEL": str(models.embed_model), "BGE_RERANK_MODEL": str(models.rerank_model)}
    handler = ROOT / "worker" / "handler.py"
    with JobServer() as jobs, WorkerProcess(handler, jobs, env) as worker:
        worker.wait_ready(60)
        yield jobs.url


@pytest.fixture(params=product(("server", "runpod"), CLIENTS), ids="-".join)
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    endpoint, driver = request.param
    with CLIENTS[driver](request.getfixturevalue(endpoint), timeout=60) as client:
        yield client


def direct(engine: Engine, texts: list[str]) -> list[Any]:
    """Return the engine's own results."""
    return engine.run(ALL_VECTORS, engine.encode_texts(texts, 8192))


@pytest.mark.parametrize(
    ("dense", "sparse", "colbert"), [o for o in product((True, False), repeat=3) if any(o)]
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_form_of_reply_is_decoded(
    dense: bool, sparse: bool, colbert: bool, dtype: Any, client: Client, packed: Engine
) -> None:
    result = client.embed(TEXTS, dense=dense, sparse=sparse, colbert=colbert, dtype=dtype)
    assert (result.dense is None, result.sparse is None, result.colbert is None) == (
        *(not dense, not sparse, not colbert),
    )
    for decoded, computed in zip(result, direct(packed, TEXTS), strict=True):
        # Other outputs are another micro-batch, whose sums may end in another last bit.
        near = {"rtol": 0, "atol": 1e-6 if dtype == "float32" else 1e-3}
        if dense:
            np.testing.assert_allclose(decoded.dense, computed.dense, **near)
        if sparse:
            np.testing.assert_array_equal(decoded.sparse.indices, computed.sparse.indices)
            np.testing.assert_allclose(decoded.sparse.values, computed.sparse.values, atol=1e-6)
        if colbert:
            assert decoded.colbert.dtype == dtype
            np.testing.assert_allclose(decoded.colbert, computed.colbert, **near)
    assert result.fingerprint == packed.models["embed"].fingerprint


def test_float32_is_exact(client: Client, packed: Engine) -> None:
    result = client.embed(TEXTS, sparse=True, colbert=True, dtype="float32")
    for decoded, computed in zip(result, direct(packed, TEXTS), strict=True):
        np.testing.assert_array_equal(decoded.dense, computed.dense)
        np.testing.assert_array_equal(decoded.colbert, computed.colbert)


def test_a_ranking_is_decoded(client: Client) -> None:
    ranking = client.rerank("минимум функции", TEXTS, raw_scores=True)
    assert ranking[0].document == TEXTS[0]
    assert sorted(result.index for result in ranking) == [0, 1, 2]
    assert ranking.usage.total_tokens > 0


def test_info_and_health_are_decoded(client: Client) -> None:
    assert client.info()["models"].keys() == {"embed", "rerank"}
    assert client.health()["workers"]["ready"] == 1


def test_errors_of_the_worker_are_raised_as_their_classes(client: Client) -> None:
    with pytest.raises(errors.ValidationError, match=r"`texts\[1\]` has 602 tokens"):
        client.embed(["a", "море " * 200], max_length=100, truncate=False)
    with pytest.raises(errors.ValidationError, match="`max_length` must be an integer >= 3"):
        client.embed("a", max_length=1)


def test_truncated_texts_are_listed(client: Client) -> None:
    assert client.embed(["a", "море " * 200], max_length=100).truncated == [1]


def test_a_request_with_too_large_a_reply_is_split(runpod: str, packed: Engine) -> None:
    texts = ["море суша данные " * 100] * 12  # 512 wide, fp32: 1.6 MB of ColBERT each
    with Client(runpod, timeout=60) as client:
        result = client.embed(texts, dense=False, colbert=True, dtype="float32")
    assert result.colbert is not None
    assert sum(vectors.nbytes for vectors in result.colbert) > 9_500_000


def test_texts_of_a_lost_worker_are_computed_by_another(
    runtimes: Any, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bge_client.chunking.MAX_CHUNK_TEXTS", 25)  # so that both workers get some
    models = settings_in(runtimes("packed"))
    env = {"BGE_EMBED_MODEL": str(models.embed_model), "BGE_RERANK_MODEL": str(models.rerank_model)}
    handler = ROOT / "worker" / "handler.py"
    texts = [f"текст {number} " * 20 for number in range(500)]
    with (
        JobServer() as jobs,
        WorkerProcess(handler, jobs, env) as lost,
        WorkerProcess(handler, jobs, env) as survivor,
        Client(jobs.url, timeout=120) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        lost.wait_ready(60)
        survivor.wait_ready(60)
        receiving = pool.submit(lambda: list(client.embed_iter(texts)))
        jobs.wait_for(lambda: jobs.held_by(lost.name), 60)
        lost.kill()
        jobs.lose(lost.name)
        received = receiving.result()
    with Client(server, timeout=120) as client:
        expected = client.embed(texts).dense
    np.testing.assert_allclose([result.dense for result in received], expected, atol=1e-5)


# ------------------------------------------------------------------------------------ chaos


class Chaos(LoopbackServer):
    """A proxy with a fault, of six kinds, in a fifth of the exchanges."""

    def __init__(self, target: str) -> None:
        super().__init__(_FaultyHandler)
        self.target = urlsplit(target)
        self.draw = random.Random(0)
        self.faults: list[str] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the connections that it broke itself."""


class _FaultyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Chaos

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        chaos = self.server
        fault = chaos.draw.choice(FAULTS) if chaos.draw.random() < 0.2 else ""
        chaos.faults += [fault] if fault else []
        if fault == "dropped before":
            self._drop()
        elif fault == "an error page":
            self._reply(502, b"<html>Bad gateway</html>")
        else:
            for _ in range(2 if fault == "repeated" else 1):
                status, answer = self._forward(body)
            if fault == "delayed":
                time.sleep(0.3)
            if fault == "dropped after":
                self._drop()
            elif fault == "truncated":
                self._reply(status, answer[: len(answer) // 2], len(answer))
                self._drop()
            else:
                self._reply(status, answer)

    def _forward(self, body: bytes) -> tuple[int, bytes]:
        target = self.server.target
        connection = HTTPConnection(target.hostname or "", target.port)
        try:
            connection.request("POST", self.path, body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def _reply(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def _drop(self) -> None:
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


FAULTS = ("dropped before", "dropped after", "truncated", "delayed", "repeated", "an error page")


@pytest.mark.parametrize("driver", CLIENTS)
def test_network_faults_lose_and_mix_up_nothing(
    driver: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bge_client.chunking.MAX_CHUNK_TEXTS", 20)
    monkeypatch.setattr(retry, "MIN_PAUSE", 0.01)
    texts = [f"текст {number}" for number in range(5000)]
    with Client(server, timeout=120) as client:
        expected = client.embed(texts).dense
    with Chaos(server) as chaos, CLIENTS[driver](chaos.base, timeout=120) as client:
        received = [result.dense for result in client.embed_iter(texts)]
    np.testing.assert_allclose(received, expected, atol=1e-5)
    assert set(chaos.faults) == set(FAULTS)
