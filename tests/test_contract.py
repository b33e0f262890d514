"""The two halves that share no code: what the worker replies, the client decodes, in every form."""

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

from bge_client import Client, errors, transport
from bge_worker.engine.engine import Engine
from bge_worker.engine.outputs import Outputs
from bge_worker.settings import Settings
from conftest import ROOT, settings_in
from fakes.loopback import LoopbackServer
from fakes.runpod_server import JobServer
from fakes.serving import serving
from fakes.worker_process import WorkerProcess

TEXTS = ["Градиентный спуск ищет минимум функции.", "A transaction is all or nothing.", "море"]
EVERYTHING = Outputs.DENSE | Outputs.SPARSE | Outputs.COLBERT


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


@pytest.fixture(params=["server", "runpod"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(request.getfixturevalue(request.param), timeout=60) as client:
        yield client


def direct(engine: Engine, texts: list[str]) -> list[Any]:
    """What the engine itself says, without any wire."""
    return engine.run(EVERYTHING, engine.encode_texts(texts, 8192))


@pytest.mark.parametrize(
    ("dense", "sparse", "colbert"), [o for o in product((True, False), repeat=3) if any(o)]
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_form_of_reply_arrives_as_it_was_computed(
    dense: bool, sparse: bool, colbert: bool, dtype: Any, client: Client, packed: Engine
) -> None:
    result = client.embed(TEXTS, dense=dense, sparse=sparse, colbert=colbert, dtype=dtype)
    assert (result.dense is None, result.sparse is None, result.colbert is None) == (
        *(not dense, not sparse, not colbert),
    )
    for mine, theirs in zip(result, direct(packed, TEXTS), strict=True):
        # Other outputs are another micro-batch, whose sums may end in another last bit.
        near = {"rtol": 0, "atol": 1e-6 if dtype == "float32" else 1e-3}
        if dense:
            np.testing.assert_allclose(mine.dense, theirs.dense, **near)
        if sparse:
            np.testing.assert_array_equal(mine.sparse.indices, theirs.sparse.indices)
            np.testing.assert_allclose(mine.sparse.values, theirs.sparse.values, atol=1e-6)
        if colbert:
            assert mine.colbert.dtype == dtype
            np.testing.assert_allclose(mine.colbert, theirs.colbert, **near)
    assert result.fingerprint == packed.models["embed"].fingerprint


def test_float32_is_the_same_to_the_last_bit(client: Client, packed: Engine) -> None:
    result = client.embed(TEXTS, sparse=True, colbert=True, dtype="float32")
    for mine, theirs in zip(result, direct(packed, TEXTS), strict=True):
        np.testing.assert_array_equal(mine.dense, theirs.dense)
        np.testing.assert_array_equal(mine.colbert, theirs.colbert)


def test_a_ranking_arrives(client: Client) -> None:
    found = client.rerank("минимум функции", TEXTS, raw_scores=True)
    assert found[0].document == TEXTS[0]
    assert sorted(one.index for one in found) == [0, 1, 2]
    assert found.usage.total_tokens > 0


def test_info_and_health_arrive(client: Client) -> None:
    assert client.info()["models"].keys() == {"embed", "rerank"}
    assert client.health()["workers"]["ready"] == 1


def test_the_worker_s_errors_arrive_as_their_classes(client: Client) -> None:
    with pytest.raises(errors.ValidationError, match=r"`texts\[1\]` has 602 tokens"):
        client.embed(["a", "море " * 200], max_length=100, truncate=False)
    with pytest.raises(errors.ValidationError, match="`max_length` must be an integer, from 3"):
        client.embed("a", max_length=1)


def test_cut_texts_are_named(client: Client) -> None:
    assert client.embed(["a", "море " * 200], max_length=100).truncated == [1]


def test_a_reply_too_large_for_the_platform_comes_in_pieces(runpod: str, packed: Engine) -> None:
    texts = ["море суша данные " * 100] * 12  # 512 wide, fp32: 1.6 MB of ColBERT each
    with Client(runpod, timeout=60) as client:
        found = client.embed(texts, dense=False, colbert=True, dtype="float32")
    assert found.colbert is not None
    assert sum(vectors.nbytes for vectors in found.colbert) > 9_500_000


def test_a_worker_that_dies_loses_nothing(
    runtimes: Any, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bge_client.split.MAX_CHUNK_TEXTS", 50)  # enough for both to get some
    models = settings_in(runtimes("packed"))
    env = {"BGE_EMBED_MODEL": str(models.embed_model), "BGE_RERANK_MODEL": str(models.rerank_model)}
    handler = ROOT / "worker" / "handler.py"
    texts = [f"текст {number} " * 20 for number in range(1500)]
    with (
        JobServer() as jobs,
        WorkerProcess(handler, jobs, env) as doomed,
        WorkerProcess(handler, jobs, env) as other,
        Client(jobs.url, timeout=120) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        doomed.wait_ready(60)
        other.wait_ready(60)
        receiving = pool.submit(lambda: list(client.embed_iter(texts)))
        jobs.wait_for(lambda: jobs.held_by(doomed.name), 60)
        doomed.kill()
        jobs.lose(doomed.name)
        received = receiving.result()
    with Client(server, timeout=120) as client:
        expected = client.embed(texts).dense
    np.testing.assert_allclose([one.dense for one in received], expected, atol=1e-5)


# ------------------------------------------------------------------------------------ chaos


class Chaos(LoopbackServer):
    """A proxy that spoils a fifth of the exchanges, each in one of six ways."""

    def __init__(self, target: str) -> None:
        super().__init__(_Spoiler)
        self.target = urlsplit(target)
        self.draw = random.Random(0)
        self.spoiled: list[str] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection it broke itself."""


class _Spoiler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Chaos

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        chaos = self.server
        way = chaos.draw.choice(WAYS) if chaos.draw.random() < 0.2 else ""
        chaos.spoiled += [way] if way else []
        if way == "dropped before":
            self._drop()
        elif way == "an error page":
            self._reply(502, b"<html>Bad gateway</html>")
        else:
            for _ in range(2 if way == "repeated" else 1):
                status, answer = self._forward(body)
            if way == "delayed":
                time.sleep(0.3)
            if way == "dropped after":
                self._drop()
            elif way == "cut":
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
        """Keep the test's own output readable."""


WAYS = ("dropped before", "dropped after", "cut", "delayed", "repeated", "an error page")


def test_chaos_loses_nothing_and_mixes_nothing_up(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bge_client.split.MAX_CHUNK_TEXTS", 20)
    monkeypatch.setattr(transport, "MIN_PAUSE", 0.01)
    texts = [f"текст {number}" for number in range(5000)]
    with Client(server, timeout=120) as client:
        expected = client.embed(texts).dense
    with Chaos(server) as chaos, Client(chaos.base, timeout=120) as client:
        received = [one.dense for one in client.embed_iter(texts)]
    np.testing.assert_allclose(received, expected, atol=1e-5)
    assert set(chaos.spoiled) == set(WAYS)
