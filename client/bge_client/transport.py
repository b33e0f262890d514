"""One job at a RunPod-shaped endpoint: sent, waited for, sent again. The only HTTP there is.

    run ─▶ POST /runsync ─▶ COMPLETED ─────────────────────────────▶ output
                         ─▶ IN_QUEUE, IN_PROGRESS ─▶ GET /status ─▶ …
                         ─▶ FAILED with an error that passes, result expired ─▶ POST again
                         ─▶ another request's reply ─▶ POST again, on another connection

Work on an endpoint is idempotent, so whatever may have been lost is sent again. A `Call` is the
time there is for all of it, and what ends it early.
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

RETRIES = 6  # of one exchange, and of one job; a rate limit is waited for until the deadline
MIN_PAUSE, MAX_PAUSE = 0.25, 10.0  # seconds before a retry, before the jitter
CONNECT_SECONDS = 10.0
# That a /runsync may hold its answer back. The platform would hold it for 90; but a job is given up
# cleanly only once its id is known, and a cold start is said once the first answer is there.
RUNSYNC_WAIT_SECONDS = 10.0
GRACE_SECONDS = 10.0  # on top of that, for the answer to arrive
MIN_POLL_PAUSE, MAX_POLL_PAUSE = 0.1, 1.0  # seconds between two looks at a job
CANCEL_SECONDS = 2.0
MIN_TTL_MS = 10_000  # the platform's own minimum
UNFINISHED_STATUSES = ("IN_QUEUE", "IN_PROGRESS", "RUNNING")
STATUSES = (*UNFINISHED_STATUSES, "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
T = TypeVar("T")


class _BearerAuth(AuthBase):
    """The key, as a header. An `auth` object also keeps requests from looking into ~/.netrc."""

    def __init__(self, key: str | None) -> None:
        """Raises ConfigurationError: a key that no header can carry."""
        self._key = read_secret(key, "api_key")

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


# --------------------------------------------------------------------------------- retries


def retry(deadline: Deadline, action: Callable[[], T], kinds: tuple[type[BGEError], ...]) -> T:
    """What `action` returns, tried again while it fails with a passing error of these kinds.

    Raises:
        BGEError: the last one, if there are no retries or there is no time left.
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
            log.warning("%s; trying again in %.1f s", error, pause)
            deadline.sleep(pause)


def _retry_pause(error: BGEError, attempts: int) -> float:
    """Seconds: what the server asks for, or twice as long each time; never all at one moment."""
    if error.retry_after is not None:
        return error.retry_after + random.uniform(0, MIN_PAUSE)
    pause = min(MAX_PAUSE, MIN_PAUSE * 2.0 ** min(attempts, 10))
    return random.uniform(pause / 2, pause)


# ------------------------------------------------------------------------------- exchanges


@dataclass(frozen=True)
class Response:
    """What came back over HTTP."""

    status: int
    headers: requests.structures.CaseInsensitiveDict[str]
    body: bytes


LENGTH_HEADERS = ("Content-Length", "Transfer-Encoding")  # one of them says where a body ends


class HTTPSession:
    """Exchanges with one server. Neither its key nor what is sent shows in an error."""

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
        """One exchange, of which each silence may last `wait` seconds.

        Raises:
            TransportError: no answer, or half of one.
            DeadlineError: the call's time is over.
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
                    allow_redirects=False,  # a redirected POST arrives as a GET
                )
                result = Response(response.status_code, response.headers, response.content)
        except (requests.RequestException, ValueError) as error:  # ValueError: TLS, when cut
            deadline.check(error)
            raise _transport_error(self.base, error) from None
        deadline.check()  # a head that was cut looks like one that has ended
        if (
            result.status == 200
            and not result.body
            and not any(name in result.headers for name in LENGTH_HEADERS)
        ):
            raise TransportError(f"no answer from {self.base}: cut off in its head")
        return result

    def request_json(
        self,
        deadline: Deadline,
        method: str,
        path: str,
        payload: object = None,
        read_timeout: float = 30.0,
    ) -> dict[str, Any]:
        """The JSON object a server answers with, persistently.

        Raises:
            HTTPStatusError: it says no.
            ProtocolError: it says something else.
        """
        body = None if payload is None else json.dumps(payload, ensure_ascii=False).encode()

        def attempt() -> dict[str, Any]:
            response = self.request(deadline, method, path, body, read_timeout)
            if response.status // 100 == 2:
                return parse_object(response)
            raise self.error_from(response)

        return retry(deadline, attempt, (TransportError, HTTPStatusError, WorkerError))

    def drop_connections(self) -> None:
        """Close those that are idle; the session opens others."""
        self._session.close()

    def error_from(self, response: Response) -> BGEError:
        """The error of an HTTP status that says no; the worker's own, if the body holds one."""
        error = _status_error(response, _error_message(response))
        error.retry_after = _retry_after(response)
        return error


def _transport_error(base: str, error: Exception) -> TransportError:
    """By the innermost cause: what requests wraps around it repeats the address three times."""
    cause: BaseException = error
    while (wrapped := _wrapped_error(cause)) is not None:
        cause = wrapped
    reason = getattr(cause, "strerror", None) or type(cause).__name__
    is_timeout = isinstance(error, requests.Timeout)
    failure = TransportError(f"no answer from {base}: {'timed out' if is_timeout else reason}")
    is_permanent = isinstance(error, requests.exceptions.InvalidURL)
    failure.retry = not is_permanent and "CERTIFICATE_VERIFY_FAILED" not in str(error)
    return failure


def _wrapped_error(error: BaseException) -> BaseException | None:
    """What requests and urllib3 have wrapped; not `__context__`, which may be the caller's."""
    candidates = (getattr(error, "reason", None), error.__cause__, *error.args)
    return next((cause for cause in candidates if isinstance(cause, BaseException)), None)


def parse_object(response: Response) -> dict[str, Any]:
    """Raises ProtocolError: the body is not one strict JSON object."""
    try:
        value = strict_json.loads(response.body)
    except ValueError as error:
        if response.body.lstrip()[:1] == b"<":
            raise ProtocolError("an HTML page came instead of JSON") from None
        raise ProtocolError(
            f"what came is not JSON: {error}. Given: {len(response.body)} bytes"
        ) from None
    if not isinstance(value, dict):
        raise ProtocolError(f"a JSON object was expected, not {type(value).__name__}")
    return value


def _status_error(response: Response, text: str) -> BGEError:
    kind, _, message = text.partition(": ")
    if kind in WORKER_ERRORS:
        return WORKER_ERRORS[kind](message)
    if response.status == 413:
        return TooLargeError(text or "the request is larger than the server takes")
    summary = f"HTTP {response.status}" + (f": {text}" if text else "")
    if response.status in (401, 403):
        return AuthenticationError(
            f"the key is missing or not accepted ({summary})", response.status
        )
    if response.status == 429:
        return RateLimitError(summary, 429)
    return HTTPStatusError(summary, response.status)


def _error_message(response: Response) -> str:
    """The sentence in an error's body, if there is one: RunPod's, ours, Jina's, OpenAI's."""
    try:
        body = parse_object(response)
    except ProtocolError:
        return ""
    message = next((body[name] for name in ("error", "detail", "message") if body.get(name)), "")
    if isinstance(message, dict):
        message = message.get("message", "")
    return redact(message)[:500] if isinstance(message, str) else ""  # no half of a key


def _retry_after(response: Response) -> float | None:
    """In seconds; a date is not worth reading another clock for."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() else None


# ----------------------------------------------------------------------------------- jobs


class Endpoint:
    """A RunPod endpoint, or a server that speaks like one."""

    def __init__(self, url: str, key: str | None, session: requests.Session) -> None:
        """Raises ConfigurationError: `url` is no address of an endpoint."""
        self._http = HTTPSession(base_url(url), key, session)

    @property
    def url(self) -> str:
        return self._http.base

    def run(self, deadline: Deadline, payload: dict[str, Any]) -> dict[str, Any]:
        """The output of the job that does `payload`.

        Raises:
            BGEError: whatever it failed with in the end.
        """
        digest = input_digest(payload)

        def attempt() -> dict[str, Any]:
            reply = self._follow(deadline, self._submit(deadline, payload))
            if reply.get("input_digest") not in (None, digest):  # None: an older worker's
                self._http.drop_connections()  # one of them is an answer behind
                raise MixedUpReplyError(
                    "the reply belongs to another request: `input_digest` differs"
                )
            return reply

        return retry(deadline, attempt, (WorkerError, ResultExpiredError, MixedUpReplyError))

    def health(self, deadline: Deadline) -> dict[str, Any]:
        return self._http.request_json(deadline, "GET", "/health")

    def _submit(self, deadline: Deadline, payload: dict[str, Any]) -> dict[str, Any]:
        def attempt() -> dict[str, Any]:
            # A second before the deadline at the latest: only what has an id can be cancelled.
            wait = min(RUNSYNC_WAIT_SECONDS, max(1.0, deadline.remaining - 1))
            ttl = max(MIN_TTL_MS, round(deadline.remaining * 1e3))  # cancels it if we cannot
            body = json.dumps({"input": payload, "policy": {"ttl": ttl}}, ensure_ascii=False)
            path = f"/runsync?wait={wait * 1e3:.0f}"
            return self._request_job(deadline, "POST", path, body.encode(), wait + GRACE_SECONDS)

        return retry(deadline, attempt, (TransportError, HTTPStatusError))

    def _follow(self, deadline: Deadline, job: dict[str, Any]) -> dict[str, Any]:
        """Poll a job until it is over; cancel it if nobody will wait for it any more."""
        pause, logged_status = MIN_POLL_PAUSE, ""
        try:
            while job["status"] in UNFINISHED_STATUSES:
                if logged_status != job["status"]:
                    logged_status = job["status"]
                    state = "waiting for a worker" if logged_status == "IN_QUEUE" else "running"
                    # A cold start, or a queue, or a long job: it is waited for, and said.
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
        """A job's state, as the platform tells it, with whatever HTTP status."""
        response = self._http.request(deadline, method, path, body, read_timeout)
        try:
            return _checked_job(parse_object(response))
        except ProtocolError:
            if response.status // 100 == 2:
                raise
            if method == "GET" and response.status == 404:
                raise ResultExpiredError("the result was not kept until it was fetched") from None
            raise self._http.error_from(response) from None

    def _cancel(self, job: dict[str, Any]) -> None:
        """Best effort, in little time of its own: the call's is over."""
        try:
            with Deadline(CANCEL_SECONDS) as deadline:
                self._http.request(
                    deadline, "POST", f"/cancel/{_job_id(job)}", b"{}", CANCEL_SECONDS
                )
            log.info("job %s was cancelled", job["id"])
        except BGEError as error:
            log.warning("job %s could not be cancelled: %s", job.get("id"), error)


def base_url(url: str) -> str:
    """An endpoint's address, without `/runsync` or `/run` at its end.

    Raises:
        ConfigurationError: it is none.
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
        ConfigurationError: it is none, or holds credentials; does not quote it.
    """
    try:
        parts = urlsplit(url.strip())
        is_valid = bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", parts.netloc)
    except ValueError:  # no host or no port; its message quotes the password
        is_valid = False
    if not is_valid:
        raise ConfigurationError(
            f"`{field}` must be an http(s) address, like http://127.0.0.1:8000"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError(f"`{field}` must hold neither a user, a query nor a fragment")
    return parts


def _checked_job(job: dict[str, Any]) -> dict[str, Any]:
    """Raises ProtocolError: not a job's state."""
    if job.get("status") not in STATUSES:
        raise ProtocolError("the answer is no job: it has no known `status`")
    return job


def _job_id(job: dict[str, Any]) -> str:
    job_id = job.get("id")
    if not isinstance(job_id, str) or not job_id or "/" in job_id:
        raise ProtocolError("the job has no `id`")
    return job_id


def job_output(job: dict[str, Any]) -> dict[str, Any]:
    """The output of a job that is over.

    Raises:
        BGEError: there is none; says why.
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
