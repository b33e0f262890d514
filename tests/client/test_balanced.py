"""The protocol of load-balancing endpoints as a generator, with a clock that pauses move."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from bge_client import balanced, errors
from bge_client.codec import input_digest
from bge_client.endpoint import is_load_balancer
from bge_client.protocol import INFO, DropConnections, Pause, Request
from bge_client.state import EndpointState, endpoint_state
from fakes.driver import Driver, Reply, job

PAYLOAD = {"texts": ["море"]}
DONE = {"input_digest": input_digest(PAYLOAD)}
NO_WORKERS = {"error": "no workers available"}


def run_request(*replies: Reply, seconds: float = 60.0) -> tuple[Driver, Any]:
    """Return the driver, and the reply or the error of the request."""
    driver = Driver(replies, seconds)
    try:
        return driver, driver.run(balanced.run_request(driver.deadline, PAYLOAD))
    except BaseException as error:
        return driver, error


@pytest.mark.parametrize(
    ("url", "is_balanced"),
    [
        ("https://some-id.api.runpod.ai", True),
        ("http://Some-Id.API.runpod.ai:8080/v1", True),
        ("https://api.runpod.ai/v2/some-id", False),
        ("http://127.0.0.1:8000", False),
        ("https://some-id.api.runpod.ai.example.org", False),
    ],
)
def test_host_tells_the_kind_of_endpoint(url: str, is_balanced: bool) -> None:
    assert is_load_balancer(url) == is_balanced


@pytest.mark.parametrize(
    ("payload", "method", "path"),
    [
        (PAYLOAD, "POST", "/native/embed"),
        ({"query": "q", "documents": ["a"]}, "POST", "/native/rerank"),
        (INFO, "GET", "/native/info"),
    ],
)
def test_native_body_is_sent_as_it_is(payload: Any, method: str, path: str) -> None:
    driver = Driver([job({})])
    driver.run(balanced.run_request(driver.deadline, payload))
    (request,) = driver.steps
    assert isinstance(request, Request)
    assert (request.method, request.path) == (method, path)
    assert request.body is None if payload is INFO else json.loads(request.body or b"") == payload
    assert request.read_timeout == 450  # the platform's own limits


@pytest.mark.parametrize("status", [200, 400, 429, 502, 503])
def test_lack_of_workers_is_waited_out(status: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bge_client")
    driver, reply = run_request(*[job(NO_WORKERS, status)] * 20, job(DONE))
    assert reply == DONE
    assert driver.pauses == [balanced.NO_WORKER_PAUSE] * 20
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == (
        "INFO",
        "no worker yet, a cold start; 60 s left",
    )


def test_deadline_without_a_worker_says_what_to_do() -> None:
    _, error = run_request(*[job(NO_WORKERS)] * 31)
    assert isinstance(error, errors.NoWorkerError)
    assert "no worker took the request within 60 seconds" in str(error)
    assert "raise max workers of the endpoint" in str(error)
    _, error = run_request()
    assert type(error) is errors.DeadlineError


def test_transient_failures_are_sent_again_and_permanent_ones_raised() -> None:
    lost, busy = errors.TransportError("reset"), job({"error": "OverloadedError: full"}, 429)
    driver, reply = run_request(job("<html>", 502), lost, busy, job(NO_WORKERS), job(DONE))
    assert reply == DONE
    assert driver.paths == ["/native/embed"] * 5
    invalid = {"error": "ValidationError: `texts[3]` is blank", "field": "texts", "index": 3}
    _, error = run_request(job(invalid, 422))
    assert isinstance(error, errors.ValidationError)
    assert (error.field, error.index) == ("texts", 3)
    driver, error = run_request(*[job({}, 502)] * 20)
    assert isinstance(error, errors.HTTPStatusError)
    assert len(driver.paths) == 7


def test_mixed_up_reply_drops_the_connections() -> None:
    driver, reply = run_request(job({"input_digest": "another"}), job(DONE))
    assert reply == DONE
    assert [type(step) for step in driver.steps] == [Request, DropConnections, Pause, Request]


@pytest.mark.parametrize(
    ("replies", "state"),
    [
        ([job({"jobs": {}, "workers": {"ready": 1}})], EndpointState.READY),
        ([job(NO_WORKERS, 503)], EndpointState.NO_WORKER),
        ([], EndpointState.NO_WORKER),  # the deadline, while the platform waits for a worker
    ],
)
def test_health_is_a_worker_s_or_the_lack_of_one(
    replies: list[Reply], state: EndpointState
) -> None:
    driver = Driver(replies)
    assert endpoint_state(driver.run(balanced.balanced_health(driver.deadline))) is state
