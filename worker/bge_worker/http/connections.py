"""HTTP/1.1 connections: uvicorn's protocol with a limit for every head and every state.

    state                       ends after                       with
    no head yet, head arriving  head                             close
    head too large              MAX_HEAD_BYTES, _FIELDS          431, close
    body arriving               body (middleware.py)             408, close
    unread body                 unread                           close
    framing of the body         MAX_FRAMING_BYTES                422, close
    reply being written         chunk (middleware.py)            close
    idle after a reply          keep_alive                       close
    pipelined requests          MAX_PIPELINED                    close
    connections                 ConnectionLimits                 429, close; not /ping, /health

Lower-case names are fields of `Timeouts`. Line ends and other bytes between two requests restart no
timer. After a close the caller has `chunk` seconds to take the rest of the reply; then the
connection is aborted. After a refusal, arriving bytes are ignored for `linger` seconds: an
immediate close would reset the connection, and the refusal would be lost.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import Counter
from time import monotonic
from typing import Any, NoReturn

import httptools
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .. import errors
from ..errors import OverloadedError, WorkerError
from .middleware import OPEN_PATHS, error_response
from .routes.native import NATIVE
from .timeouts import Timeouts

log = logging.getLogger("bge_worker.server")

MAX_HEAD_BYTES, MAX_HEAD_FIELDS = 64 * 1024, 100
# Chunk sizes, extensions and trailers of a chunked body. 30 MB in chunks of 1 KB have 0.3 MB.
MAX_FRAMING_BYTES = 1_000_000
MAX_PIPELINED = 32  # requests read while an earlier one is answered; few clients send any
MAX_CONNECTIONS = 4096  # with heads of 64 KB: 256 MB
OTHER_DESCRIPTORS = 64  # of listeners, models, logs
RESERVED = 32  # connections beyond the limits, for /ping and /health alone
LOG_SECONDS = 10.0  # between two log lines of one kind


class ConnectionLimits:
    """Limits the connections in all and from one address.

    One address may have half of all: behind a proxy, such as RunPod's load balancer, every caller
    has the proxy's address, and half is four times the largest queue.
    """

    def __init__(self, max_connections: int) -> None:
        self.max_connections = max_connections
        self.max_per_address = max(1, max_connections // 2)
        self._total = 0
        self._by_address: Counter[str] = Counter()
        self._reserved: dict[Connection, None] = {}  # oldest first
        self._logged: dict[str, float] = {}

    def admit(self, connection: Connection, address: str) -> bool:
        """Count a connection. Return False if it exceeds a limit and is one of the reserve, whose
        oldest is closed if the reserve is full."""
        from_address = self._by_address[address]
        if self._total < self.max_connections and from_address < self.max_per_address:
            self._total += 1
            self._by_address[address] += 1
            return True
        self.log(
            "%d connections are open, %d from one address: limit met", self._total, from_address
        )
        if len(self._reserved) >= RESERVED:
            next(iter(self._reserved)).transport.close()
        self._reserved[connection] = None
        return False

    def log(self, message: str, *values: object) -> None:
        """Log at most one line of each kind in LOG_SECONDS: any caller can cause them."""
        if monotonic() >= self._logged.get(message, 0.0):
            self._logged[message] = monotonic() + LOG_SECONDS
            log.warning(message, *values)

    def release(self, connection: Connection, address: str) -> None:
        if connection in self._reserved:
            del self._reserved[connection]
        else:
            self._total -= 1
            self._by_address[address] -= 1
            if self._by_address[address] <= 0:
                del self._by_address[address]


def connection_limits() -> ConnectionLimits:
    """Derive the limits from the process's file descriptors; raise the soft limit if needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED + OTHER_DESCRIPTORS
    descriptors = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
    return ConnectionLimits(max(1, descriptors - RESERVED - OTHER_DESCRIPTORS))


class Connection(HttpToolsProtocol):
    """One connection; see the table above."""

    def __init__(
        self, *args: Any, limits: ConnectionLimits, timeouts: Timeouts, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False  # uvicorn's holds paths and queries
        self._limits = limits
        self._timeouts = timeouts
        self._admitted = True
        self._refusal: WorkerError | None = None
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = self._in_body = False
        self._messages_begun = 0
        self._start_counting()

    def _start_counting(self) -> None:
        self._head_fields = 0
        self._head_parsed = self._head_arrived = 0  # bytes
        self._body_bytes = self._framing_bytes = 0

    # ------------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._admitted = self._limits.admit(self, self._address)
        self._application, self.app = self.app, self._run
        self._end_after(self._timeouts.head if self._admitted else self._timeouts.unread)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_after(None)
        self._limits.release(self, self._address)
        self.app = self._application  # breaks the reference cycle
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        was_idle = not self._in_head and not self._in_body
        was_in_body, body_bytes, begun = self._in_body, self._body_bytes, self._messages_begun
        self._feed(data)
        begun = self._messages_begun - begun
        # Only head bytes arrived. They are counted here: an unfinished field has no callback.
        if self._in_head and (begun == 0 or (begun == 1 and was_idle)):
            self._head_arrived += len(data)
            if self._head_arrived > MAX_HEAD_BYTES:
                self._send_error(_too_large("bytes", MAX_HEAD_BYTES, self._head_arrived))
        if was_in_body and self._in_body and begun == 0:
            self._framing_bytes += len(data) - (self._body_bytes - body_bytes)
            if self._framing_bytes > MAX_FRAMING_BYTES:
                self._send_error(
                    errors.ValidationError(
                        f"chunk sizes, extensions and trailers must have at most "
                        f"{MAX_FRAMING_BYTES} bytes. Given: {self._framing_bytes} or more"
                    )
                )

    def _feed(self, data: bytes) -> None:
        """As in uvicorn, without a log line for every error."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # no other protocol is served
        except httptools.HttpParserError:  # also for an error that a callback raised
            self._send_error(self._refusal or errors.MalformedError("the request is not HTTP/1.1"))

    # ------------------------------------------------------------- the parser's events

    def on_message_begin(self) -> None:
        self._in_head = True
        self._messages_begun += 1
        self._start_counting()
        if self._admitted:
            self._end_after(self._timeouts.head)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer, which is not used
        self._head_fields += 1
        if self._head_fields > MAX_HEAD_FIELDS:
            self._refuse(_too_large("fields", MAX_HEAD_FIELDS, self._head_fields))
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        path = self.url.partition(b"?")[0].decode("latin1")
        if not self._admitted and path not in OPEN_PATHS:
            self._refuse(OverloadedError("too many connections are open; try again later"))
        if len(self.pipeline) >= MAX_PIPELINED:
            self._refuse(OverloadedError(f"at most {MAX_PIPELINED} requests may be pipelined"))
        self._in_head, self._in_body = False, True
        if self._admitted:
            self._end_after(None)  # the middleware has timers of its own
        super().on_headers_complete()
        if not self._admitted:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()
        if self.cycle.response_complete:
            self._end_after(self._timeouts.keep_alive)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # any byte stops uvicorn's own timer
        if self.cycle.response_complete and not self._in_head:  # else the next one has begun
            self._end_after(self._timeouts.unread if self._in_body else self._timeouts.keep_alive)

    # ----------------------------------------------------------- replies and timers

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._application(scope, receive, send)
        finally:
            # uvicorn closes after the last reply, or one that was cut off, once this returns.
            self.loop.call_soon(self._end_if_closing)

    def _end_if_closing(self) -> None:
        if self.transport.is_closing() and self in self.connections:
            self._close()

    def _refuse(self, error: WorkerError) -> NoReturn:
        """Stop the parser; `_feed` then sends the error."""
        self._refusal = error
        raise error

    def _count_head(self, size: int) -> None:
        self._head_parsed += size
        if self._head_parsed > MAX_HEAD_BYTES:
            self._refuse(_too_large("bytes", MAX_HEAD_BYTES, self._head_parsed))

    def _send_error(self, error: WorkerError) -> None:
        """Send an error, unless it would be taken for another request's reply; then close."""
        if self.transport.is_closing():
            return
        self._limits.log("a request was refused: %s", error)
        cycle, self._refused = self.cycle, True
        is_own = self._in_body and not self.pipeline and not cycle.response_started
        if cycle is not None and not cycle.response_complete and not is_own:
            self._close()
            return
        head, body = error_response(error, NATIVE)
        headers = [*head["headers"], (b"connection", b"close")]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[error.status] + lines + b"\r\n" + body)
        self.transport.write_eof()
        self._end_after(self._timeouts.linger)

    def _end_after(self, seconds: float | None) -> None:
        """Replace the timer: close the connection in `seconds`."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if seconds is not None:
            self._timer = self.loop.call_later(seconds, self._close)

    def _close(self) -> None:
        """Close; abort if the caller does not take the written bytes in time."""
        self._end_after(None)
        self.transport.close()
        self._timer = self.loop.call_later(self._timeouts.chunk, self.transport.abort)


def _too_large(what: str, limit: int, given: int) -> errors.HeadTooLargeError:
    return errors.HeadTooLargeError(
        f"the request's head must have at most {limit} {what}. Given: {given} or more"
    )
