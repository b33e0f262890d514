"""HTTP with retries, and the job protocol of a RunPod endpoint.

    run ─▶ POST /runsync ─▶ COMPLETED ─────────────────────────────▶ output
                         ─▶ IN_QUEUE, IN_PROGRESS ─▶ GET /status ─▶ …
                         ─▶ FAILED with a transient error, result expired ─▶ POST again
                         ─▶ reply to another request ─▶ POST again, on another connection

Jobs are idempotent, so a lost request or response is retried. One `Deadline` limits it all.
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import requests
from requests.auth import AuthBase

from . import strict_json
from .codec import input_digest
from .deadline import Deadline, renew_after_fork
from .errors import (
    WORKER_ERRORS,
    AuthenticationError,
    BGEError,
    ConfigurationError,
    HTTPStatusError,
    JobCancelledError,
    JobTimedOutError,
    MixedUpReplyError,
    ProtocolError,
    RateLimitError,
    ResultExpiredError,
    TooLargeError,
    TransportError,
    WorkerError,
    job_error,
)
from .redaction import read_secret, redact

log = logging.getLogger("bge_client")

RETRIES = 6  # of one HTTP request, and of one job; rate limits are retried until the deadline
MIN_PAUSE, MAX_PAUSE = 0.25, 10.0  # seconds before a retry, before the jitter
CONNECT_SECONDS = 10.0
# How long /runsync waits for the result before it responds. The platform allows 90 s, but a job
# can be cancelled, and a cold start logged, only after the first response.
RUNSYNC_WAIT_SECONDS = 10.0
GRACE_SECONDS = 10.0  # on top of that, for the response to arrive
MIN_POLL_PAUSE, MAX_POLL_PAUSE = 0.1, 1.0  # seconds between two polls of a job
CANCEL_SECONDS = 2.0
MIN_TTL_MS = 10_000  # the platform's minimum
UNFINISHED_STATUSES = ("IN_QUEUE", "IN_PROGRESS", "RUNNING")
STATUSES = (*UNFINISHED_STATUSES, "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
T = TypeVar("T")


class _BearerAuth(AuthBase):
    """Send the key as a bearer token. Any `auth` object keeps requests from reading ~/.netrc."""

    def __init__(self, key: str | None) -> None:
        """Raises ConfigurationError if an HTTP header cannot carry the key."""
        self._key = read_secret(key, "api_key")

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


# --------------------------------------------------------------------------------- retries


def retry(deadline: Deadline, action: Callable[[], T], kinds: tuple[type[BGEError], ...]) -> T:
    """Call `action`, and retry it on transient errors of these kinds.

    Raises:
        BGEError: the last error, once no retry or no time is left.
    """
    attempts = failures = 0
    while True:
        try:
            return action()
        except kinds as error:
            attempts += 1
            failures += not error.patient
            pause = _retry_pause(error, attempts)
            if not error.retry or failures > RETRIES or pause >= deadline.remaining:
                raise
            log.warning("%s; retrying in %.1f s", error, pause)
            deadline.sleep(pause)


def _retry_pause(error: BGEError, attempts: int) -> float:
    """Return `Retry-After`, or an exponential backoff, in seconds and with jitter."""
    if error.retry_after is not None:
        return error.retry_after + random.uniform(0, MIN_PAUSE)
    pause = min(MAX_PAUSE, MIN_PAUSE * 2.0 ** min(attempts, 10))
    return random.uniform(pause / 2, pause)


# ------------------------------------------------------------------------------- exchanges


@dataclass(frozen=True)
class Response:
    """An HTTP response, read to its end."""

    status: int
    headers: requests.structures.CaseInsensitiveDict[str]
    body: bytes


LENGTH_HEADERS = ("Content-Length", "Transfer-Encoding")


class HTTPSession:
    """Requests to one server. No error quotes the key or a request body."""

    def __init__(self, base: str, key: str | None, session: requests.Session) -> None:
        self.base = base
        self._key = _BearerAuth(key)
        self._session = session
        renew_after_fork(session)

    def request(
        self,
        deadline: Deadline,
        method: str,
        path: str,
        body: bytes | None = None,
        read_timeout: float = 30.0,
    ) -> Response:
        """Send one request. `read_timeout` limits each wait for bytes, in seconds.

        Raises:
            TransportError: no response, or an incomplete one.
            DeadlineError: the deadline has passed.
        """
        deadline.check()
        remaining = deadline.remaining
        try:
            with deadline.tracking_sockets():
                response = self._session.request(
                    method,
                    self.base + path,
                    data=body,
                    headers={"Content-Type": "application/json"} if body is not None else {},
                    auth=self._key,
                    timeout=(min(CONNECT_SECONDS, remaining), min(read_timeout, remaining)),
                    allow_redirects=False,  # a redirected POST becomes a GET
                )
                result = Response(response.status_code, response.headers, response.content)
        except (requests.RequestException, ValueError) as error:  # ValueError: TLS, when shut down
            deadline.check(error)
            raise _transport_error(self.base, error) from None
        deadline.check()  # a truncated head looks like a complete one
        has_length = any(name in result.headers for name in LENGTH_HEADERS)
        if result.status == 200 and not result.body and not has_length:
            raise TransportError(f"no response from {self.base}: its head is incomplete")
        return result

    def request_json(
        self, deadline: Deadline, method: str, path: str, payload: object = None
    ) -> dict[str, Any]:
        """Send a request with retries and return the JSON object of the response.

        Raises:
            HTTPStatusError: the status is not 2xx.
            ProtocolError: the body is not a JSON object.
        """
        body = None if payload is None else json.dumps(payload, ensure_ascii=False).encode()

        def attempt() -> dict[str, Any]:
            response = self.request(deadline, method, path, body)
            if response.status // 100 == 2:
                return parse_object(response)
            raise self.error_from(response)

        return retry(deadline, attempt, (TransportError, HTTPStatusError, WorkerError))

    def drop_connections(self) -> None:
        """Close the idle connections. The session opens new ones."""
        self._session.close()

    def error_from(self, response: Response) -> BGEError:
        """Return the error of an unsuccessful response: the worker's, if the body holds one."""
        error = _status_error(response, _error_message(response))
        error.retry_after = _retry_after(response)
        return error


def _transport_error(base: str, error: Exception) -> TransportError:
    """Name the innermost cause: the messages of requests repeat the address three times."""
    cause: BaseException = error
    while (wrapped := _wrapped_error(cause)) is not None:
        cause = wrapped
    reason = getattr(cause, "strerror", None) or type(cause).__name__
    is_timeout = isinstance(error, requests.Timeout)
    failure = TransportError(f"no response from {base}: {'timed out' if is_timeout else reason}")
    is_permanent = isinstance(error, requests.exceptions.InvalidURL)
    failure.retry = not is_permanent and "CERTIFICATE_VERIFY_FAILED" not in str(error)
    return failure


def _wrapped_error(error: BaseException) -> BaseException | None:
    """Return the error that requests or urllib3 wrapped. `__context__` may be the caller's."""
    candidates = (getattr(error, "reason", None), error.__cause__, *error.args)
    return next((cause for cause in candidates if isinstance(cause, BaseException)), None)


def parse_object(response: Response) -> dict[str, Any]:
    """Parse the body. Raises ProtocolError if it is not one strict JSON object."""
    try:
        value = strict_json.loads(response.body)
    except ValueError as error:
        if response.body.lstrip()[:1] == b"<":
            raise ProtocolError("the response is an HTML page, not JSON") from None
        size = len(response.body)
        raise ProtocolError(f"the response is not JSON: {error}. Given: {size} bytes") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"the response must be a JSON object, not {type(value).__name__}")
    return value


def _status_error(response: Response, text: str) -> BGEError:
    kind, _, message = text.partition(": ")
    if kind in WORKER_ERRORS:
        return WORKER_ERRORS[kind](message)
    if response.status == 413:
        return TooLargeError(text or "the request exceeds the server's size limit")
    summary = f"HTTP {response.status}" + (f": {text}" if text else "")
    if response.status in (401, 403):
        message = f"the key is missing or not accepted ({summary})"
        return AuthenticationError(message, response.status)
    if response.status == 429:
        return RateLimitError(summary, 429)
    return HTTPStatusError(summary, response.status)


def _error_message(response: Response) -> str:
    """Return the message in an error body, or "": RunPod's, this server's, Jina's or OpenAI's."""
    try:
        body = parse_object(response)
    except ProtocolError:
        return ""
    message = next((body[name] for name in ("error", "detail", "message") if body.get(name)), "")
    if isinstance(message, dict):
        message = message.get("message", "")
    # Redact before cutting, so that no part of a key remains.
    return redact(message)[:500] if isinstance(message, str) else ""


def _retry_after(response: Response) -> float | None:
    """Return `Retry-After` in seconds. A date is ignored: it would depend on two clocks."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() else None


# ----------------------------------------------------------------------------------- jobs


class Endpoint:
    """A RunPod endpoint, or a server with the same API."""

    def __init__(self, url: str, key: str | None, session: requests.Session) -> None:
        """Raises ConfigurationError if `url` is not the address of an endpoint."""
        self._http = HTTPSession(base_url(url), key, session)

    @property
    def url(self) -> str:
        return self._http.base

    def run(self, deadline: Deadline, payload: dict[str, Any]) -> dict[str, Any]:
        """Submit `payload` as a job, wait for it, and return its output. Retries transient errors.

        Raises:
            BGEError: the last error.
        """
        digest = input_digest(payload)

        def attempt() -> dict[str, Any]:
            reply = self._follow(deadline, self._submit(deadline, payload))
            if reply.get("input_digest") not in (None, digest):  # older workers send none
                self._http.drop_connections()  # one of them is a response behind
                raise MixedUpReplyError(
                    "the reply belongs to another request: `input_digest` differs"
                )
            return reply

        return retry(deadline, attempt, (WorkerError, ResultExpiredError, MixedUpReplyError))

    def health(self, deadline: Deadline) -> dict[str, Any]:
        return self._http.request_json(deadline, "GET", "/health")

    def _submit(self, deadline: Deadline, payload: dict[str, Any]) -> dict[str, Any]:
        def attempt() -> dict[str, Any]:
            # End a second before the deadline: a job can be cancelled only once its id is known.
            wait = min(RUNSYNC_WAIT_SECONDS, max(1.0, deadline.remaining - 1))
            ttl = max(MIN_TTL_MS, round(deadline.remaining * 1e3))  # in case cancelling fails
            body = json.dumps({"input": payload, "policy": {"ttl": ttl}}, ensure_ascii=False)
            path = f"/runsync?wait={wait * 1e3:.0f}"
            return self._request_job(deadline, "POST", path, body.encode(), wait + GRACE_SECONDS)

        return retry(deadline, attempt, (TransportError, HTTPStatusError))

    def _follow(self, deadline: Deadline, job: dict[str, Any]) -> dict[str, Any]:
        """Poll a job until it ends. Cancel it if the caller stops waiting."""
        pause, logged_status = MIN_POLL_PAUSE, ""
        try:
            while job["status"] in UNFINISHED_STATUSES:
                if logged_status != job["status"]:
                    logged_status = job["status"]
                    state = "waiting for a worker" if logged_status == "IN_QUEUE" else "running"
                    log.info("job %s is %s; %.0f s left", job.get("id"), state, deadline.remaining)
                deadline.sleep(pause)
                pause = min(MAX_POLL_PAUSE, pause * 1.5)
                job = self._poll(deadline, _job_id(job))
        except ResultExpiredError:
            raise
        except BaseException:
            self._cancel(job)
            raise
        return job_output(job)

    def _poll(self, deadline: Deadline, job_id: str) -> dict[str, Any]:
        def attempt() -> dict[str, Any]:
            return self._request_job(deadline, "GET", f"/status/{job_id}")

        return retry(deadline, attempt, (TransportError, HTTPStatusError))

    def _request_job(
        self,
        deadline: Deadline,
        method: str,
        path: str,
        body: bytes | None = None,
        read_timeout: float = 30.0,
    ) -> dict[str, Any]:
        """Return a job's state. The platform may send it with an unsuccessful HTTP status."""
        response = self._http.request(deadline, method, path, body, read_timeout)
        try:
            return _checked_job(parse_object(response))
        except ProtocolError:
            if response.status // 100 == 2:
                raise
            if method == "GET" and response.status == 404:
                raise ResultExpiredError("the result expired before it was fetched") from None
            raise self._http.error_from(response) from None

    def _cancel(self, job: dict[str, Any]) -> None:
        """Try to cancel, under a short deadline of its own: the call's has passed."""
        try:
            with Deadline(CANCEL_SECONDS) as deadline:
                path = f"/cancel/{_job_id(job)}"
                self._http.request(deadline, "POST", path, b"{}", CANCEL_SECONDS)
            log.info("cancelled job %s", job["id"])
        except BGEError as error:
            log.warning("could not cancel job %s: %s", job.get("id"), error)


def base_url(url: str) -> str:
    """Return the address of an endpoint without a trailing `/runsync` or `/run`.

    Raises:
        ConfigurationError: it is not an http(s) address.
    """
    parts = split_url(url, "endpoint")
    if parts.scheme not in ("http", "https"):
        raise ConfigurationError(
            "`endpoint` must be an http(s) address, like https://api.runpod.ai/v2/<id>"
        )
    path = parts.path.rstrip("/")
    for suffix in ("/runsync", "/run"):
        path = path.removesuffix(suffix)
    return f"{parts.scheme}://{parts.netloc}{path}"


def split_url(url: str, field: str) -> SplitResult:
    """Split an address.

    Raises:
        ConfigurationError: it is invalid or holds credentials. The message does not quote it.
    """
    try:
        parts = urlsplit(url.strip())
        is_valid = bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", parts.netloc)
    except ValueError:  # its message quotes the password
        is_valid = False
    if not is_valid:
        raise ConfigurationError(
            f"`{field}` must be an http(s) address, like http://127.0.0.1:8000"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError(f"`{field}` must hold neither a user, a query nor a fragment")
    return parts


def _checked_job(job: dict[str, Any]) -> dict[str, Any]:
    """Raises ProtocolError if this is not the state of a job."""
    if job.get("status") not in STATUSES:
        raise ProtocolError("the response is not a job: it has no known `status`")
    return job


def _job_id(job: dict[str, Any]) -> str:
    job_id = job.get("id")
    if not isinstance(job_id, str) or not job_id or "/" in job_id:
        raise ProtocolError("the job has no `id`")
    return job_id


def job_output(job: dict[str, Any]) -> dict[str, Any]:
    """Return the output of a job that has ended.

    Raises:
        BGEError: it has none. The message says why.
    """
    if job["status"] == "CANCELLED":
        raise JobCancelledError("the job was cancelled")
    if job["status"] == "TIMED_OUT":
        raise JobTimedOutError("the platform ended the job: it took too long")
    result = job.get("output")
    if job["status"] == "FAILED":
        raise job_error(job.get("error"))
    if isinstance(result, dict) and "error" in result:
        raise job_error(result["error"])
    if not isinstance(result, dict):
        raise ProtocolError(
            "the job is COMPLETED without output: the platform drops replies over its limit"
        )
    return result
