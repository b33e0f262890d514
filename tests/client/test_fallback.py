"""The endpoint dies under load: every answer is right, and it is asked again when it is back."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_client import BGEError, Client, Probe, ProbeError, Router, retry
from bge_client.providers import circuit
from conftest import MODELS
from fakes.host_vectors import dense_of
from fakes.hosts import Host
from fakes.server_process import ServerProcess
from fakes.serving import eventually

TEXTS = [f"текст номер {number}" for number in range(40)]


class Load:
    """Threads that embed one text after another until the end of the block."""

    def __init__(self, router: Router, threads: int = 4) -> None:
        self._router = router
        self._is_ending = threading.Event()
        self.results: list[tuple[int, str, Any]] = []  # text, provider, vector
        self.errors: list[BGEError] = []
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ending.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        while not self._is_ending.is_set():
            number = (number + 1) % len(TEXTS)
            try:
                result = self._router.embed(TEXTS[number])
            except BGEError as error:
                self.errors.append(error)
                time.sleep(0.01)
                continue
            assert result.dense is not None
            self.results.append((number, result.provider, result.dense[0]))

    def count(self, provider: str) -> int:
        return Counter(provider for _, provider, _ in self.results)[provider]

    def wait_for(self, provider: str, answers: int = 20) -> None:
        count = self.count(provider) + answers
        eventually(lambda: self.count(provider) >= count)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "MIN_PAUSE", 0.001)
    monkeypatch.setattr(circuit, "OPEN_SECONDS", 0.2)


@pytest.fixture
def endpoint(runtimes: Any, tmp_path: Path) -> Iterator[ServerProcess]:
    """The server of one's own, which a test may kill and start again at the same address."""
    models = {"BGE_EMBED_MODEL": str(runtimes("packed") / MODELS[0]), "BGE_RERANK_MODEL": ""}
    server = ServerProcess(models | {"BGE_DEVICE": "cpu"}, tmp_path / "log")
    with server:
        server.wait_for(200)
        yield server


def test_every_answer_is_right_while_the_endpoint_is_killed_and_started_again(
    endpoint: ServerProcess, worker: Client, caplog: pytest.LogCaptureFixture
) -> None:
    expected = dense_of(worker, TEXTS)
    env = {"BGE_EMBEDDINGS_ENDPOINT": endpoint.url, "EMBEDDINGS_FALLBACKS": "deepinfra"}
    probe = Probe.record(worker)
    with (
        Host("deepinfra", lambda texts: dense_of(worker, texts)) as host,
        Router.from_env(
            env | host.env, probe=probe, expect_fingerprint=probe.fingerprint
        ) as router,
        Load(router) as load,
    ):
        load.wait_for("bge")
        endpoint.process.kill()
        endpoint.process.wait()
        load.wait_for("deepinfra")
        with endpoint:
            endpoint.wait_for(200)
            load.wait_for("bge")
            fallbacks = load.count("deepinfra")
            load.wait_for("bge")
            assert load.count("deepinfra") == fallbacks
    assert load.errors == []
    for number, _, vector in load.results:
        np.testing.assert_allclose(vector, expected[number], atol=1e-5)


def test_no_vector_of_another_space_is_returned_while_the_endpoint_is_dead(
    endpoint: ServerProcess, worker: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a host's that does not match the probe, nor Jina's, who is not even asked."""
    env = {
        "BGE_EMBEDDINGS_ENDPOINT": endpoint.url,
        "EMBEDDINGS_FALLBACKS": "deepinfra,jina",
        "JINA_API_KEY": "k3y-of-jina",
    }
    probe = Probe.record(worker)
    with (
        Host("deepinfra", lambda texts: -dense_of(worker, texts)) as host,
        Router.from_env(
            env | host.env, probe=probe, expect_fingerprint=probe.fingerprint
        ) as router,
        Load(router) as load,
    ):
        load.wait_for("bge")
        endpoint.process.kill()
        eventually(lambda: len(load.errors) > 20)
    assert {provider for _, provider, _ in load.results} == {"bge"}
    assert not any(isinstance(error, ProbeError) for error in load.errors)  # its own error first
    assert all(error.retry for error in load.errors)
    assert "vectors of deepinfra are refused: text `ru` has cosine -1.0" in caplog.text
    assert len(host.requests) <= 4  # by each thread the probe, and nothing else
