"""Results are posted until RunPod has them, through the failures of a network."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from bge_worker.runpod.delivery import Delivery

URL = "http://runpod/done/$ID?gpu=none"


class Session:
    """The part of aiohttp's session in use. Each post has the next outcome; the last repeats."""

    def __init__(self, *outcomes: int | Exception) -> None:
        self._outcomes = deque(outcomes)
        self.bodies: list[Any] = []

    @asynccontextmanager
    async def post(
        self, url: str, data: bytes, headers: dict[str, str], allow_redirects: bool
    ) -> AsyncIterator[Any]:
        assert not allow_redirects
        assert url == "http://runpod/done/job-1?gpu=none&isStream=false"
        assert headers["X-Request-ID"] == "job-1"
        self.bodies.append(json.loads(data))
        outcome = self._outcomes.popleft() if len(self._outcomes) > 1 else self._outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        yield SimpleNamespace(status=outcome, read=self._read)

    async def _read(self) -> None:
        raise ConnectionResetError("after the status")


def post(session: Session, result: dict[str, Any], retry_seconds: float = 60.0) -> None:
    delivery = Delivery(URL, retry_seconds=retry_seconds, min_pause=0.001)
    asyncio.run(delivery.post(session, "job-1", result))


@pytest.mark.parametrize(
    "failure", [ConnectionResetError("away"), TimeoutError(), RuntimeError(), 302, 408, 429, 500]
)
def test_a_transient_failure_is_retried(failure: int | Exception) -> None:
    session = Session(failure, failure, 200)
    post(session, {"output": {}})
    assert session.bodies == [{"output": {}}] * 3


@pytest.mark.parametrize("status", [400, 401, 404, 413])
def test_a_refused_result_is_replaced_by_an_error(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    session = Session(status, 200)
    post(session, {"output": {"embeddings": ["x" * 100]}})
    assert session.bodies[1:] == [
        {"error": f"InferenceError: RunPod refused the result: HTTP {status} for 132 bytes"}
    ]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_refused_error_is_not_posted_again() -> None:
    session = Session(400)
    post(session, {"output": {}})
    assert len(session.bodies) == 2


def test_a_result_is_dropped_after_the_retry_time(caplog: pytest.LogCaptureFixture) -> None:
    post(Session(503), {"output": {}}, retry_seconds=0.0)
    assert "job job-1: the result could not be posted: HTTP 503" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), object(), "\udc00"])
def test_a_reply_that_is_not_json_becomes_an_error(value: object) -> None:
    session = Session(200)
    post(session, {"output": value})
    assert [*session.bodies[0]] == ["error"]
