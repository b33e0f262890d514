"""The job protocol of a RunPod endpoint, without I/O.

    run_job ─▶ POST /runsync ─▶ COMPLETED ─────────────────────────────▶ output
                             ─▶ IN_QUEUE, IN_PROGRESS ─▶ GET /status ─▶ …
                             ─▶ FAILED with a transient error, result expired ─▶ POST again
                             ─▶ reply to another request ─▶ POST again, on another connection

An `Exchange` is a generator that yields what to do and receives what came of it. A driver
(`transport.py` with requests, `async_transport.py` with httpx2) sends each `Request` and returns
its `Response`, or throws the `TransportError` if there was none. Whatever else interrupts the
driver (the deadline, Ctrl-C, a cancelled task) it throws too: the exchange then yields the request
that cancels its job, and raises.

Jobs are idempotent, so a lost request or response is retried. One `Deadline` limits it all.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from . import strict_json
from .codec import input_digest
from .deadline import Deadline
from .errors import (
    AuthenticationError,
    BGEError,
    DeadlineError,
    HTTPStatusError,
    JobCancelledError,
    JobTimedOutError,
    MixedUpReplyError,
    NoWorkerError,
    ProtocolError,
    RateLimitError,
    ResultExpiredError,
    TooLargeError,
    TransportError,
    WorkerError,
    job_error,
    worker_error,
)
from .redaction import redact
from .retry import RETRIES, Retries
from .state import EndpointState, endpoint_state

log = logging.getLogger("bge_client")

# How long /runsync waits for the result before it responds. The platform allows 90 s, but a job
# can be cancelled, and a cold start logged, only after the first response.
RUNSYNC_WAIT_SECONDS = 10.0
GRACE_SECONDS = 10.0  # on top of that, for the response to arrive
MIN_POLL_PAUSE, MAX_POLL_PAUSE = 0.1, 1.0  # seconds between two polls of a job
CANCEL_SECONDS = 2.0
MIN_TTL_MS = 10_000  # the platform's minimum
MAX_BODY_BYTES = 1 << 28  # decompressed; ColBERT vectors of one text take up to 45 MB
UNFINISHED_STATUSES = ("IN_QUEUE", "IN_PROGRESS", "RUNNING")
STATUSES = (*UNFINISHED_STATUSES, "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
JSONObject = dict[str, Any]
INFO: JSONObject = {"info": True}  # the smallest job: the worker describes itself


@dataclass(frozen=True)
class Request:
    """Send this, at `path` below the endpoint. `read_timeout` limits each wait for bytes.

    A `is_cleanup` request is sent after the call has ended, within `read_timeout` in all.
    """

    method: str
    path: str
    body: bytes | None = None
    read_timeout: float = 30.0
    is_cleanup: bool = False


@dataclass(frozen=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True)
class DropConnections:
    """Use none of the idle connections again: one of them is a response behind."""


@dataclass(frozen=True)
class Response:
    """An HTTP response, read to its end. `headers` ignores the case of its keys."""

    status: int
    headers: Mapping[str, str]
    body: bytes


T = TypeVar("T")
Step = Request | Pause | DropConnections
Exchange = Generator[Step, Response, T]


# ------------------------------------------------------------------------------- exchanges


def request_json(deadline: Deadline, request: Request) -> Exchange[JSONObject]:
    """Send a request with retries and return the JSON object of the response.

    Raises:
        HTTPStatusError: the status is not 2xx.
        ProtocolError: the body is not a JSON object.
    """
    return checked_object((yield from request_value(deadline, request)))


def request_value(deadline: Deadline, request: Request) -> Exchange[Any]:
    """Send a request with retries and return any JSON of the response, and raise alike."""
    retries = Retries(deadline)
    while True:
        try:
            response = yield request
            if response.status // 100 != 2:
                raise status_error(response)
            return parse_json(response)
        except (TransportError, HTTPStatusError, WorkerError) as error:
            yield Pause(retries.pause(error))


def post_value(deadline: Deadline, path: str, body: JSONObject) -> Exchange[Any]:
    """Post a JSON object to `path`, return any JSON of the response, and raise alike."""
    content = json.dumps(body, ensure_ascii=False).encode()
    return request_value(deadline, Request("POST", path, content))


def job_health(deadline: Deadline) -> Exchange[JSONObject]:
    """Return the counts of jobs and workers."""
    return request_json(deadline, Request("GET", "/health"))


def run_job(
    deadline: Deadline, payload: JSONObject, max_retries: float = RETRIES
) -> Exchange[JSONObject]:
    """Submit `payload` as a job, wait for it, and return its output. Retries transient errors.

    Raises:
        BGEError: the last error.
    """
    retries = Retries(deadline, max_retries)
    while True:
        try:
            job = yield from _job_state(deadline, payload, None, max_retries)
            output = job_output((yield from _follow(deadline, job, max_retries)))
            return (yield from checked_reply(payload, output))
        except (WorkerError, ResultExpiredError, MixedUpReplyError) as error:
            yield Pause(retries.pause(error))


def checked_reply(payload: JSONObject, reply: JSONObject) -> Exchange[JSONObject]:
    """Return `reply`. Raises MixedUpReplyError if it is not that to `payload`."""
    if reply.get("input_digest") in (None, input_digest(payload)):  # older workers send none
        return reply
    yield DropConnections()
    raise MixedUpReplyError("the reply belongs to another request: `input_digest` differs")


def _follow(deadline: Deadline, job: JSONObject, max_retries: float) -> Exchange[JSONObject]:
    """Poll a job until it ends. Cancel it if the caller stops waiting."""
    pause, logged_status = MIN_POLL_PAUSE, ""
    try:
        while job["status"] in UNFINISHED_STATUSES:
            if logged_status != job["status"]:
                logged_status = job["status"]
                state = "waiting for a worker" if logged_status == "IN_QUEUE" else "running"
                log.info("job %s is %s; %.0f s left", job.get("id"), state, deadline.remaining)
            yield Pause(pause)
            pause = min(MAX_POLL_PAUSE, pause * 1.5)
            job = yield from _job_state(deadline, {}, _job_id(job), max_retries)
    except (ResultExpiredError, GeneratorExit):
        raise
    except BaseException as error:
        yield from _cancel(job)
        is_late = isinstance(error, DeadlineError) and deadline.remaining == 0
        if is_late and job["status"] == "IN_QUEUE":
            yield from _check_workers(deadline)
        raise
    return job


def _check_workers(deadline: Deadline) -> Exchange[None]:
    """Raises NoWorkerError if the endpoint has no worker for a job that was left in the queue."""
    try:
        response = yield Request("GET", "/health", read_timeout=CANCEL_SECONDS, is_cleanup=True)
        state = endpoint_state(parse_reply(response) | {"jobs": {"inQueue": 1}})
    except BGEError:
        return  # the reason stays unknown
    if state in (EndpointState.NO_WORKER, EndpointState.BROKEN):
        waited = f"no worker took the job within {deadline.seconds:g} seconds"
        raise NoWorkerError(f"{waited}: the endpoint is {state.value}")


def _job_state(
    deadline: Deadline, payload: JSONObject, job_id: str | None, max_retries: float
) -> Exchange[JSONObject]:
    """Submit a job, or poll the one with this id, and return its state."""
    retries = Retries(deadline, max_retries)
    while True:
        poll = Request("GET", f"/status/{job_id}")
        request = _submission(deadline, payload) if job_id is None else poll
        try:
            return _parse_job((yield request), is_poll=request is poll)
        except (TransportError, HTTPStatusError) as error:
            yield Pause(retries.pause(error))


def _submission(deadline: Deadline, payload: JSONObject) -> Request:
    # End a second before the deadline: a job can be cancelled only once its id is known.
    wait = min(RUNSYNC_WAIT_SECONDS, max(1.0, deadline.remaining - 1))
    ttl = max(MIN_TTL_MS, round(deadline.remaining * 1e3))  # in case cancelling fails
    body = json.dumps({"input": payload, "policy": {"ttl": ttl}}, ensure_ascii=False)
    path = f"/runsync?wait={wait * 1e3:.0f}"
    return Request("POST", path, body.encode(), wait + GRACE_SECONDS)


def _cancel(job: JSONObject) -> Exchange[None]:
    """Try to cancel a job."""
    try:
        path = f"/cancel/{_job_id(job)}"
        response = yield Request("POST", path, b"{}", CANCEL_SECONDS, is_cleanup=True)
        if response.status // 100 != 2:
            raise status_error(response)
        log.info("cancelled job %s", job["id"])
    except BGEError as error:
        log.warning("could not cancel job %s: %s", job.get("id"), error)


# --------------------------------------------------------------------------------- replies


def check_size(body: bytearray) -> None:
    """Raise ProtocolError if a body is too large to be a reply, as a compressed one can become."""
    if len(body) > MAX_BODY_BYTES:
        raise ProtocolError(f"the response exceeds {MAX_BODY_BYTES} bytes")


def parse_reply(response: Response) -> JSONObject:
    """Return the JSON object of a successful response. Raises BGEError."""
    if response.status // 100 != 2:
        raise status_error(response)
    return parse_object(response)


def parse_object(response: Response) -> JSONObject:
    """Parse the body. Raises ProtocolError if it is not one strict JSON object."""
    return checked_object(parse_json(response))


def parse_json(response: Response) -> Any:
    """Parse the body. Raises ProtocolError if it is not strict JSON."""
    try:
        return strict_json.loads(response.body)
    except ValueError as error:
        if response.body.lstrip()[:1] == b"<":
            raise ProtocolError("the response is an HTML page, not JSON") from None
        size = len(response.body)
        raise ProtocolError(f"the response is not JSON: {error}. Given: {size} bytes") from None


def checked_object(value: Any) -> JSONObject:
    if not isinstance(value, dict):
        raise ProtocolError(f"the response must be a JSON object, not {type(value).__name__}")
    return value


def status_error(response: Response) -> BGEError:
    """Return the error of an unsuccessful response: the worker's, if the body holds one."""
    text, details = error_message(response)
    error = worker_error(text, details) or _http_error(response.status, text)
    # A date is ignored: it would depend on two clocks.
    seconds = response.headers.get("Retry-After", "")
    error.retry_after = float(seconds) if seconds.isascii() and seconds.isdigit() else None
    return error


def _http_error(status: int, text: str) -> BGEError:
    if status == 413:
        return TooLargeError(text or "the request exceeds the server's size limit")
    if status // 100 == 3:
        text = "redirects are not followed"
    summary = f"HTTP {status}" + (f": {text}" if text else "")
    if status in (401, 403):
        return AuthenticationError(f"the key is missing or not accepted ({summary})", status)
    return (RateLimitError if status == 429 else HTTPStatusError)(summary, status)


def error_message(response: Response) -> tuple[str, JSONObject]:
    """Return the message in an error body, or "", and the object that holds it.

    Knows the bodies of RunPod, this project's server, Jina and OpenAI.
    """
    try:
        body = parse_object(response)
    except ProtocolError:
        return "", {}
    message = next((body[name] for name in ("error", "detail", "message") if body.get(name)), "")
    if isinstance(message, dict):
        body, message = message, message.get("message", "")
    # Redact before cutting, so that no part of a key remains.
    return redact(message)[:500] if isinstance(message, str) else "", body


def _parse_job(response: Response, is_poll: bool) -> JSONObject:
    """Return a job's state. The platform may send it with an unsuccessful HTTP status."""
    try:
        job = parse_object(response)
        if job.get("status") not in STATUSES:
            raise ProtocolError("the response is not a job: it has no known `status`")
        return job
    except ProtocolError:
        if response.status // 100 == 2:
            raise
        if is_poll and response.status == 404:
            raise ResultExpiredError("the result expired before it was fetched") from None
        raise status_error(response) from None


def _job_id(job: JSONObject) -> str:
    job_id = job.get("id")
    if not isinstance(job_id, str) or not job_id or "/" in job_id:
        raise ProtocolError("the job has no `id`")
    return job_id


def job_output(job: JSONObject) -> JSONObject:
    """Return the output of a job that has ended.

    Raises:
        BGEError: it has none. The message says why.
    """
    if job["status"] == "CANCELLED":
        raise JobCancelledError("the job was cancelled")
    if job["status"] == "TIMED_OUT":
        raise JobTimedOutError("the platform ended the job: it took too long")
    output = job.get("output")
    if job["status"] == "FAILED":
        raise job_error(job.get("error"), job)
    if isinstance(output, dict) and "error" in output:
        raise job_error(output["error"], output)
    if not isinstance(output, dict):
        raise ProtocolError(
            "the job is COMPLETED without output: the platform drops replies over its limit"
        )
    return output
