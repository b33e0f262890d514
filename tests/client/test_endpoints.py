"""Both kinds of endpoint answer alike: real worker processes behind stand-ins of the platform."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bge_client import Client, EndpointState, Route, Router, endpoint_state, errors
from bge_client.cli import bge
from bge_client.providers import endpoint as providers
from fakes import load_balancer
from fakes.clients import CLIENTS
from fakes.endpoints import ENDPOINTS, BalancedEndpoint, Endpoint, cancelled_requests
from fakes.load_balancer import KEY, resolve_to_loopback
from fakes.native import QUERY, TEXTS
from fakes.serving import eventually

LONG = ["море и суша " * 300] * 50  # seconds of work
MANY = [f"текст {number} " * 10 for number in range(250)]


@pytest.fixture(scope="module", autouse=True)
def _addresses() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        resolve_to_loopback(patch)
        yield


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bge_client.chunking.MAX_CHUNK_TEXTS", 25)
    monkeypatch.setattr("bge_client.protocol.RUNSYNC_WAIT_SECONDS", 0.1)
    monkeypatch.setattr("bge_client.balanced.NO_WORKER_PAUSE", 0.1)


@pytest.fixture(scope="module")
def running(runtimes: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A function that returns the endpoint of a kind, with one worker."""
    endpoints: dict[str, Endpoint[Any]] = {}

    def started(kind: str) -> Endpoint[Any]:
        if kind not in endpoints:
            endpoints[kind] = ENDPOINTS[kind](runtimes("packed"), tmp_path_factory.mktemp(kind))
            endpoints[kind].start()
        return endpoints[kind]

    yield started
    for endpoint in endpoints.values():
        endpoint.__exit__()


@pytest.fixture(params=product(ENDPOINTS, CLIENTS), ids="-".join)
def client(request: pytest.FixtureRequest, running: Any) -> Iterator[Client]:
    kind, driver = request.param
    with CLIENTS[driver](running(kind).url, KEY, timeout=60) as client:
        yield client


@pytest.fixture(params=ENDPOINTS)
def endpoint(request: pytest.FixtureRequest, runtimes: Any, tmp_path: Path) -> Iterator[Any]:
    """An endpoint without workers."""
    with ENDPOINTS[request.param](runtimes("packed"), tmp_path) as endpoint:
        yield endpoint


@pytest.fixture
def clients(endpoint: Endpoint[Any]) -> Iterator[list[Client]]:
    made = [connect(endpoint.url, KEY, timeout=60) for connect in CLIENTS.values()]
    yield made
    for client in made:
        client.close()


def check_bulk(received: list[Any], running: Any) -> None:
    with Client(running("balancer").url, KEY) as client:
        expected = client.embed(MANY).dense
    np.testing.assert_allclose([result.dense for result in received], expected, atol=1e-5)


# --------------------------------------------------------------------------------- answers


def test_vectors_scores_and_info_are_the_worker_s(client: Client, running: Any) -> None:
    result = client.embed(TEXTS, sparse=True, colbert=True)
    with Client(running("queue").url) as reference:
        expected = reference.embed(TEXTS, sparse=True, colbert=True)
    np.testing.assert_allclose(result.dense, expected.dense, atol=1e-6)  # type: ignore[arg-type]
    assert result.fingerprint == expected.fingerprint
    assert client.rerank(QUERY, TEXTS, top_n=1)[0].document == TEXTS[1]
    assert client.warm_up()["models"].keys() == {"embed", "rerank"}
    assert client.info()["limits"]["max_texts"] == 2048  # type: ignore[index]
    assert endpoint_state(client.health()) is EndpointState.READY


def test_many_texts_come_in_order(client: Client, running: Any) -> None:
    check_bulk(list(client.embed_iter(iter(MANY))), running)


def test_error_has_its_field_index_and_limit(client: Client) -> None:
    texts = [*["море"] * 120, "море " * 200]
    with pytest.raises(errors.ValidationError, match=r"`texts\[120\]` has") as caught:
        client.embed(texts, max_length=150, truncate=False)
    error = caught.value
    assert (error.field, error.index) == ("texts", 120)


def test_key_is_checked_by_the_load_balancer(running: Any) -> None:
    client = Client(running("balancer").url, "another-key")
    with client, pytest.raises(errors.AuthenticationError):
        client.embed("море")


def test_text_over_the_load_balancer_s_limit_is_refused(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_balancer, "MAX_BYTES", 100_000)
    with Client(running("balancer").url, KEY) as client, pytest.raises(errors.TooLargeError):
        client.embed("a" * 100_000)


# ------------------------------------------------------------------------------ lifecycles


def test_requests_wait_for_the_first_worker(
    endpoint: Endpoint[Any], clients: list[Client], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "bge_client"), ThreadPoolExecutor(2) as pool:
        results = [pool.submit(client.embed, TEXTS) for client in clients]
        eventually(lambda: endpoint.waiting() >= 2)
        state = endpoint_state(clients[0].health())
        assert state is EndpointState.NO_WORKER
        endpoint.start()
        assert [len(result.result()) for result in results] == [3, 3]
    is_cold = [r for r in caplog.records if r.levelno == logging.INFO]
    assert len([r for r in is_cold if "worker" in r.getMessage()]) == 2  # once for each call


@pytest.mark.parametrize("driver", CLIENTS)
def test_deadline_without_a_worker_says_what_to_do(driver: str, endpoint: Endpoint[Any]) -> None:
    client = CLIENTS[driver](endpoint.url, KEY, timeout=1.2)
    with client, pytest.raises(errors.NoWorkerError, match="raise max workers of the endpoint"):
        client.embed("море")


def test_draining_and_killed_workers_lose_nothing(
    endpoint: Endpoint[Any], clients: list[Client], running: Any
) -> None:
    with ThreadPoolExecutor(3) as pool:
        draining, killed, _ = pool.map(lambda _: endpoint.start(), range(3))
        receiving = [pool.submit(lambda c=c: list(c.embed_iter(MANY))) for c in clients]
        eventually(lambda: bool(endpoint.in_flight(killed)))
        endpoint.kill(killed)
        eventually(lambda: bool(endpoint.in_flight(draining)))
        endpoint.drain(draining)
        received = [future.result() for future in receiving]
    for results in received:
        check_bulk(results, running)


# ------------------------------------------------------------------------------- cancelling


@pytest.mark.parametrize("driver", CLIENTS)
def test_deadline_ends_the_request_in_the_worker(driver: str, running: Any) -> None:
    endpoint: BalancedEndpoint = running("balancer")
    (worker,) = endpoint.balancer.workers
    before = cancelled_requests(worker)
    client = CLIENTS[driver](endpoint.url, KEY, timeout=0.5)
    with client, pytest.raises(errors.DeadlineError, match="not done within"):
        client.embed(LONG)
    eventually(lambda: cancelled_requests(worker) > before and not endpoint.in_flight(worker))


ONE_CHUNK = """
import socket, sys
from bge_client import Client
resolve = socket.getaddrinfo
socket.getaddrinfo = lambda host, *args, **options: resolve("127.0.0.1", *args, **options)
Client(sys.argv[1], sys.argv[2]).embed(["море и суша " * 300] * 50)
"""


def test_ctrl_c_ends_the_request_in_the_worker(running: Any) -> None:
    endpoint: BalancedEndpoint = running("balancer")
    (worker,) = endpoint.balancer.workers
    before = cancelled_requests(worker)
    command = [sys.executable, "-c", ONE_CHUNK, endpoint.url, KEY]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as caller:
        eventually(lambda: endpoint.in_flight(worker) > 0)
        caller.send_signal(signal.SIGINT)
    eventually(lambda: cancelled_requests(worker) > before and not endpoint.in_flight(worker))


def test_closed_iterator_sends_nothing_more(client: Client, running: Any) -> None:
    results = client.embed_iter(text for text in MANY * 100)
    next(results)
    results.close()
    for kind in ENDPOINTS:
        eventually(lambda kind=kind: idle(running(kind)))


def idle(endpoint: Endpoint[Any]) -> bool:
    with Client(endpoint.url, KEY) as client:
        jobs = client.health()["jobs"]
    assert isinstance(jobs, dict)
    in_flight = endpoint.balancer.in_flight() if isinstance(endpoint, BalancedEndpoint) else 0
    return not jobs.get("inQueue") and not in_flight


# ------------------------------------------------------------------------ command and router


def test_command_says_in_words_what_the_endpoint_is(
    endpoint: Endpoint[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    options = ("--endpoint", endpoint.url)
    result = CliRunner().invoke(bge, ["warm-up", "--wait", "1.2", *options])
    assert result.exit_code == 4
    assert "Waiting up to 1.2 s for a worker." in result.stderr
    assert "NoWorkerError" in result.stderr
    endpoint.start()
    assert "Ready after" in CliRunner().invoke(bge, ["warm-up", *options]).stdout
    result = CliRunner().invoke(bge, ["health", *options])
    assert result.stderr == "The endpoint is ready: a worker answers.\n"
    assert json.loads(result.stdout)["workers"]["ready"] == 1


def test_router_uses_the_endpoint(client: Client) -> None:
    if isinstance(client, Client):
        route = Route("embeddings", [providers.Endpoint(client)])
        assert Router(route, route).embed(TEXTS).provider == "bge"
