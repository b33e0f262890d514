"""The driver of exchanges that blocks its thread, with requests."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any, TypeVar

import requests
import urllib3
from requests.adapters import HTTPAdapter

from .deadline import Deadline
from .errors import ConfigurationError, DeadlineError, TransportError
from .fork import renew_after_fork
from .protocol import Exchange, Pause, Request, Response, Step, check_size

CONNECT_SECONDS = 10.0
MAX_CONNECTIONS = 64  # kept open, for threads that share a client
PIECE_BYTES = 1 << 16
LENGTH = re.compile(r"[0-9]+( *, *[0-9]+)*")
LENGTH_HEADERS = ("Content-Length", "Transfer-Encoding")
T = TypeVar("T")


class Transport:
    """Runs exchanges with the server at `url`. Threads may share it.

    Between two pieces of a body the deadline is checked. The wait for one piece ends when requests
    times out, so a call may exceed its deadline by one read timeout; by more, if the server sends
    the head of its response byte by byte.
    """

    def __init__(self, url: str, key: str | None, session: requests.Session | None = None) -> None:
        self.url = url
        self._key = key
        self._owns_session = session is None
        self._session = session or new_session()
        self._is_closed = False
        renew_after_fork(self._session)

    def close(self) -> None:
        """Close the connections, except those of a `session` that was passed."""
        self._is_closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        if self._is_closed and self._owns_session:
            self._session.close()

    def run(self, exchange: Exchange[T], deadline: Deadline) -> T:
        """Return the result of an exchange, or raise its error."""
        try:
            step = next(exchange)
            while True:
                try:
                    response = self._perform(step, deadline)
                except BaseException as error:
                    step = exchange.throw(error)
                else:
                    step = exchange.send(response)  # type: ignore[arg-type]  # None after a pause
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            self._close_idle()  # a thread may still cancel its job after `close`

    def _perform(self, step: Step, deadline: Deadline) -> Response | None:
        if isinstance(step, Request):
            return self._send(step, Deadline(step.read_timeout) if step.is_cleanup else deadline)
        if isinstance(step, Pause):
            deadline.sleep(step.seconds)
        else:
            self._session.close()  # it opens new ones
        return None

    def _send(self, request: Request, deadline: Deadline) -> Response:
        """Send one request.

        Raises:
            TransportError: no response, or an incomplete one.
            DeadlineError: the deadline has passed.
            ConfigurationError: there are no TLS certificates at the configured path.
        """
        deadline.start()
        deadline.check()
        remaining = deadline.remaining
        body = bytearray()
        try:
            with self._session.request(
                request.method,
                self.url + request.path,
                data=request.body,
                headers={"Content-Type": "application/json"} if request.body is not None else {},
                auth=self._authorize,
                timeout=(min(CONNECT_SECONDS, remaining), min(request.read_timeout, remaining)),
                allow_redirects=False,  # a redirected POST becomes a GET
                stream=True,
            ) as response:
                self._check_head(response.headers)
                # `read1` returns what has arrived; `read` would wait for the whole piece.
                while piece := response.raw.read1(PIECE_BYTES, decode_content=True):
                    body += piece
                    check_size(body)
                    if deadline.remaining == 0:  # a cancelled call reads on, for its job's id
                        raise deadline.error()
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            deadline.check()
            is_timeout = isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError))
            is_invalid = isinstance(error, requests.exceptions.InvalidURL)
            raise transport_error(self.url, error, is_timeout, is_invalid) from None
        except DeadlineError:  # an OSError too
            raise
        except OSError as error:  # of requests itself: a file named by the environment
            raise ConfigurationError(f"the TLS certificates cannot be read: {error}") from None
        has_length = any(name in response.headers for name in LENGTH_HEADERS)
        if response.status_code == 200 and not body and not has_length:
            deadline.check()
            raise TransportError(f"no response from {self.url}: its head is incomplete")
        return Response(response.status_code, response.headers, bytes(body))

    def _check_head(self, headers: Mapping[str, str]) -> None:
        """Raises TransportError if the head is malformed. httpx2 checks that, requests does not."""
        length = headers.get("Content-Length", "0")
        if not LENGTH.fullmatch(length) or any("\0" in value for value in headers.values()):
            raise TransportError(f"no response from {self.url}: its head is malformed")

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Send the key as a bearer token. Any `auth` keeps requests from reading ~/.netrc."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def new_session() -> requests.Session:
    """Return a session that threads can share. It drops cookies."""
    session = requests.Session()
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_connections=4, pool_maxsize=MAX_CONNECTIONS))
    return session


def transport_error(
    url: str, error: Exception, is_timeout: bool, is_invalid: bool
) -> TransportError:
    """Name the innermost cause: the messages of HTTP libraries repeat the address or say little."""
    cause: BaseException = error
    while (wrapped := _wrapped_error(cause)) is not None:
        cause = wrapped
    reason = getattr(cause, "strerror", None) or type(cause).__name__
    if isinstance(cause, ConnectionError) and cause.errno:
        reason = os.strerror(cause.errno)  # asyncio's `strerror` repeats the address
    failure = TransportError(f"no response from {url}: {'timed out' if is_timeout else reason}")
    failure.retry = not is_invalid and not isinstance(cause, ssl.SSLCertVerificationError)
    return failure


def _wrapped_error(error: BaseException) -> BaseException | None:
    """Return the error that a library wrapped. `__context__` may be the caller's."""
    candidates: tuple[Any, ...] = (getattr(error, "reason", None), error.__cause__, *error.args)
    return next((cause for cause in candidates if isinstance(cause, BaseException)), None)
