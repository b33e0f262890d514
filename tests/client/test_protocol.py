"""The job protocol as a generator: no sockets, no threads, and a clock that pauses move."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_client import errors, protocol, retry
from bge_client.calls import EmbedCall
from bge_client.codec import EmbedOptions, input_digest
from bge_client.deadline import Deadline
from bge_client.protocol import DropConnections, Pause, Request, Response, Step
from fakes.driver import Driver, Reply, job
from fakes.scripted import output_of

PAYLOAD = {"texts": ["море"]}
DONE = {"id": "job-1", "status": "COMPLETED", "output": {"input_digest": input_digest(PAYLOAD)}}
QUEUED = {"id": "job-1", "status": "IN_QUEUE"}
NO_WORKER = "no worker took the job within 0.5 seconds: the endpoint is"


def run_job(*replies: Reply, seconds: float = 60.0) -> tuple[Driver, Any]:
    """Return the driver, and the output or the error of the job."""
    driver = Driver(replies, seconds)
    try:
        return driver, driver.run(protocol.run_job(driver.deadline, PAYLOAD))
    except BaseException as error:
        return driver, error


def failed(error: str) -> Response:
    return job({"id": "job-1", "status": "FAILED", "error": error})


def test_job_is_submitted_polled_and_decoded() -> None:
    driver, output = run_job(job(QUEUED), job(QUEUED), job(DONE))
    assert output == DONE["output"]
    assert driver.paths == ["/runsync", "/status/job-1", "/status/job-1"]
    assert driver.pauses == [0.1, pytest.approx(0.15)]
    submission = driver.steps[0]
    assert isinstance(submission, Request)
    assert submission.path == "/runsync?wait=10000"
    assert submission.read_timeout == 20
    assert json.loads(submission.body or b"") == {"input": PAYLOAD, "policy": {"ttl": 60_000}}


@pytest.mark.parametrize("seconds", [0.5, 1.5, 5])
def test_runsync_responds_a_second_before_a_near_deadline(seconds: float) -> None:
    driver, _ = run_job(job(DONE), seconds=seconds)
    submission = driver.steps[0]
    assert isinstance(submission, Request)
    assert submission.path == f"/runsync?wait={max(1.0, seconds - 1) * 1e3:.0f}"
    assert json.loads(submission.body or b"")["policy"]["ttl"] == 10_000


def test_polls_slow_down_to_one_a_second() -> None:
    driver, _ = run_job(*[job(QUEUED)] * 12, job(DONE))
    assert driver.pauses == sorted(driver.pauses)
    assert driver.pauses[-1] == 1.0


@pytest.mark.parametrize(
    "interruption",
    [KeyboardInterrupt(), errors.DeadlineError("late"), SystemExit()],
    ids=lambda error: type(error).__name__,
)
def test_interrupted_poll_cancels_the_job(interruption: BaseException) -> None:
    driver, error = run_job(job(QUEUED), interruption, job({}))
    assert error is interruption
    assert driver.paths == ["/runsync", "/status/job-1", "/cancel/job-1"]
    cancel = driver.steps[-1]
    assert isinstance(cancel, Request)
    assert cancel.is_cleanup
    assert cancel.read_timeout == protocol.CANCEL_SECONDS


def test_interrupted_submission_has_nothing_to_cancel() -> None:
    driver, error = run_job(KeyboardInterrupt())
    assert isinstance(error, KeyboardInterrupt)
    assert driver.paths == ["/runsync"]


@pytest.mark.parametrize(
    ("reply", "reason"), [(errors.TransportError("reset"), "reset"), (job({}, 500), "HTTP 500")]
)
def test_failed_cancellation_raises_the_interruption(
    reply: Reply, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, error = run_job(job(QUEUED), KeyboardInterrupt(), reply)
    assert isinstance(error, KeyboardInterrupt)
    assert f"could not cancel job job-1: {reason}" in caplog.text


def test_closed_exchange_requests_nothing() -> None:
    exchange = protocol.run_job(Deadline(60), PAYLOAD)
    next(exchange)
    exchange.send(job(QUEUED))
    exchange.close()


def test_expired_result_and_transient_failures_are_submitted_again() -> None:
    lost = errors.TransportError("reset")
    driver, output = run_job(
        lost, job(QUEUED), job({}, 404), failed("InferenceError: x"), job({"error": "x"}, 502),
        job(QUEUED), lost, job({}, 503), job(DONE),
    )  # fmt: skip
    assert output == DONE["output"]
    assert driver.paths == [
        *["/runsync"] * 2, "/status/job-1", *["/runsync"] * 3, *["/status/job-1"] * 3
    ]  # fmt: skip


def test_mixed_up_reply_drops_the_connections() -> None:
    mixed_up = {"id": "job-1", "status": "COMPLETED", "output": {"input_digest": "another"}}
    driver, output = run_job(job(mixed_up), job(DONE))
    assert output == DONE["output"]
    assert [type(step) for step in driver.steps] == [Request, DropConnections, Pause, Request]


def test_retry_after_replaces_the_backoff() -> None:
    driver, _ = run_job(job({}, 429, Retry_After="7"), job(DONE))
    (pause,) = driver.pauses
    assert 7 <= pause <= 7 + retry.MIN_PAUSE


@pytest.mark.parametrize("date", ["Wed, 21 Oct 2026 07:28:00 GMT", "-1", "²", ""])
def test_retry_after_that_is_no_number_is_ignored(date: str) -> None:
    driver, _ = run_job(job({}, 429, Retry_After=date), job(DONE))
    assert driver.pauses[0] <= 2 * retry.MIN_PAUSE


def test_rate_limit_is_retried_until_the_deadline() -> None:
    driver, error = run_job(*[job({}, 429)] * 1000, seconds=300)
    assert isinstance(error, errors.RateLimitError)
    assert len(driver.paths) > 30
    assert 290 - retry.MAX_PAUSE <= sum(driver.pauses) < 300


def test_warm_up_outlasts_errors_that_end_other_calls() -> None:
    refusals = [errors.TransportError("refused")] * 20 + [job({}, 503)] * 20
    info = job({"id": "i", "status": "COMPLETED", "output": {"device": "cpu"}})
    driver = Driver([*refusals, job(QUEUED), info], 600)
    output = driver.run(protocol.run_job(driver.deadline, protocol.INFO, float("inf")))
    assert output == {"device": "cpu"}
    assert len(driver.paths) == 42


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ({"idle": 0}, f"{NO_WORKER} without a worker"),
        ({"throttled": 1}, f"{NO_WORKER} broken"),
        ({"running": 1}, "not done within 0.5 seconds"),
        ("none", "not done within 0.5 seconds"),
    ],
)
def test_deadline_of_a_queued_job_names_the_lack_of_a_worker(workers: Any, message: str) -> None:
    driver, error = run_job(*[job(QUEUED)] * 4, job({}), job({"workers": workers}), seconds=0.5)
    assert driver.paths[-2:] == ["/cancel/job-1", "/health"]
    assert isinstance(error, errors.DeadlineError)
    assert str(error).startswith(message)


# ------------------------------------------------------------------------------ properties


REPLIES: list[Callable[[], Reply]] = [
    lambda: job(QUEUED),
    lambda: job({"id": "job-1", "status": "IN_PROGRESS"}),
    lambda: job(DONE),
    lambda: job({"id": "job-1", "status": "COMPLETED", "output": {"input_digest": "another"}}),
    lambda: job({"id": "job-1", "status": "CANCELLED"}),
    lambda: failed("InferenceError: x"),
    lambda: failed("ValidationError: x"),
    lambda: job({}, 404),
    lambda: job({}, 401),
    lambda: job({}, 429, Retry_After="3"),
    lambda: job({}, 500),
    lambda: Response(200, {}, b"<html>"),
    lambda: errors.TransportError("reset"),
    lambda: errors.DeadlineError("late"),
    lambda: KeyboardInterrupt(),
]


@given(st.lists(st.sampled_from(REPLIES)), st.floats(0.5, 100))
def test_any_replies_end_in_an_output_or_an_error_and_leave_no_job(
    replies: list[Callable[[], Reply]], seconds: float
) -> None:
    driver, result = run_job(*(make() for make in replies), seconds=seconds)
    assert result == DONE["output"] or isinstance(result, BaseException)
    assert driver.now < seconds + 1
    cancellations = [path for path in driver.paths if path.startswith("/cancel")]
    assert len(cancellations) == driver.unfinished
    assert not cancellations or driver.steps[-1].is_cleanup  # type: ignore[union-attr]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000), st.integers(0, 99))
def test_chunk_is_halved_until_it_fits_and_errors_count_from_the_first_text(
    count: int, max_texts: int, offset: int, bad: int
) -> None:
    texts = [f"текст {number}" for number in range(count)]

    def reply(request: Step) -> Response:
        assert isinstance(request, Request)
        payload = json.loads(request.body or b"")["input"]
        chunk = payload["texts"]
        if len(chunk) > max_texts:
            return failed("TooLargeError: too much")
        if bad < count and texts[bad] in chunk:
            return failed(f"ValidationError: `texts[{chunk.index(texts[bad])}]` has 9 tokens")
        return job({"id": "j", "status": "COMPLETED", "output": output_of(payload)})

    exchange = EmbedCall(EmbedOptions(), protocol.run_job, None).send(Deadline(60), texts, offset)
    step = next(exchange)
    try:
        while True:
            step = exchange.send(reply(step))
    except StopIteration as stop:
        assert bad >= count
        assert sum(len(result) for result in stop.value) == count
    except errors.ValidationError as error:
        assert (error.field, error.index) == ("texts", bad + offset)
        assert str(error) == f"`texts[{bad + offset}]` has 9 tokens"
