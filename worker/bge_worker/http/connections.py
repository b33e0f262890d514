"""HTTP/1.1 connections: uvicorn's protocol with a size for every head and an end to every state.

    state                       ends after                     with
    no head yet, head arriving  HEAD_SECONDS                   close
    head too large              MAX_HEAD_BYTES, _FIELDS        431, close
    body arriving               BODY_SECONDS (gate.py)         408, close
    unread body                 UNREAD_SECONDS                 close
    body's framing              MAX_FRAMING_BYTES              422, close
    answer being written        PIECE_SECONDS (gate.py)        close
    idle after an answer        KEEP_ALIVE_SECONDS             close
    pipelined requests          MAX_PIPELINED                  close
    connections                 ConnectionLimits               429 but for /ping and /health, close

Line ends and other bytes between two requests restart no timer. After a close a caller has
PIECE_SECONDS to take what is left of the answer; then it is dropped. After a refusal what still
arrives is ignored for LINGER_SECONDS: closed at once, the connection would be reset, and the
refusal lost with it.
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

from ..errors import (
    HeadTooLargeError,
    MalformedError,
    OverloadedError,
    ValidationError,
    WorkerError,
)
from .middleware import OPEN_ROUTES, PIECE_SECONDS, error_response

log = logging.getLogger("bge_worker.server")

HEAD_SECONDS = 60.0
UNREAD_SECONDS = 5.0
LINGER_SECONDS = 2.0
KEEP_ALIVE_SECONDS = 75  # longer than a proxy's: it is the proxy that closes
MAX_HEAD_BYTES, MAX_HEAD_FIELDS = 64 * 1024, 100
# Of a chunked body: sizes, extensions, trailers. Chunks of 1 KB have 0.3 MB of it in 30 MB.
MAX_FRAMING_BYTES = 1_000_000
MAX_PIPELINED = 32  # requests read while an earlier one is answered; clients hardly ever send any
MAX_CONNECTIONS = 4096  # with heads of 64 KB: 256 MB
OTHER_DESCRIPTORS = 64  # listeners, models, logs
RESERVED = 32  # connections beyond the limits that may ask for /ping and /health
LOG_SECONDS = 10.0  # between two log lines about one limit


class ConnectionLimits:
    """How many connections there may be in all and from one address, and how many there are.

    One address may have half of all: behind a proxy, RunPod's load balancer for one, every caller
    has the proxy's address, and half is four times the largest queue.
    """

    def __init__(self, max_connections: int) -> None:
        self.max_connections = max_connections
        self.max_per_address = max(1, max_connections // 2)
        self._total = 0
        self._by_address: Counter[str] = Counter()
        self._reserved: dict[Connection, None] = {}  # in the order they came
        self._logged: dict[str, float] = {}

    def admit(self, connection: Connection, address: str) -> bool:
        """Count a connection. False: it is beyond a limit and may use the reserve alone, where
        the oldest gives way to it."""
        mine = self._by_address[address]
        if self._total < self.max_connections and mine < self.max_per_address:
            self._total += 1
            self._by_address[address] += 1
            return True
        self.log("%d connections are open, %d from one address: limit met", self._total, mine)
        if len(self._reserved) >= RESERVED:
            next(iter(self._reserved)).transport.close()
        self._reserved[connection] = None
        return False

    def log(self, message: str, *values: object) -> None:
        """Anybody can bring these about: one line of each kind in LOG_SECONDS."""
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
    """By the descriptors this process may have; raises the soft limit if it has to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED + OTHER_DESCRIPTORS
    descriptors = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
    return ConnectionLimits(max(1, descriptors - RESERVED - OTHER_DESCRIPTORS))


class Connection(HttpToolsProtocol):
    """One connection; see the table above."""

    def __init__(self, *args: Any, limits: ConnectionLimits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False  # uvicorn's has paths and queries in it
        self._limits = limits
        self._admitted = True
        self._refusal: WorkerError | None = None
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = self._in_body = False
        self._begun = 0  # messages
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
        self._end_after(HEAD_SECONDS if self._admitted else UNREAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_after(None)
        self._limits.release(self, self._address)
        self.app = self._application  # or each connection would be garbage in a cycle
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        was_idle = not self._in_head and not self._in_body
        was_in_body, read, begun = self._in_body, self._body_bytes, self._begun
        self._feed(data)
        begun = self._begun - begun
        # Nothing but head came. Of a field that has not ended no callback tells.
        if self._in_head and (begun == 0 or (begun == 1 and was_idle)):
            self._head_arrived += len(data)
            if self._head_arrived > MAX_HEAD_BYTES:
                self._answer(_too_large("bytes", MAX_HEAD_BYTES, self._head_arrived))
        if was_in_body and self._in_body and begun == 0:
            self._framing_bytes += len(data) - (self._body_bytes - read)
            if self._framing_bytes > MAX_FRAMING_BYTES:
                self._answer(
                    ValidationError(
                        f"chunk sizes, extensions and trailers must have at most "
                        f"{MAX_FRAMING_BYTES} bytes. Given: {self._framing_bytes} or more"
                    )
                )

    def _feed(self, data: bytes) -> None:
        """As uvicorn does, but for a line in the log at each error."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # to nothing that is spoken here
        except httptools.HttpParserError:  # or what a callback raised
            self._answer(self._refusal or MalformedError("the request is not HTTP/1.1"))

    # ------------------------------------------------------------- the parser's events

    def on_message_begin(self) -> None:
        self._in_head = True
        self._begun += 1
        self._start_counting()
        if self._admitted:
            self._end_after(HEAD_SECONDS)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: nobody reads it
        self._head_fields += 1
        if self._head_fields > MAX_HEAD_FIELDS:
            self._refuse(_too_large("fields", MAX_HEAD_FIELDS, self._head_fields))
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        path = self.url.partition(b"?")[0].decode("latin1")
        if not self._admitted and path not in OPEN_ROUTES:
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
            self._end_after(KEEP_ALIVE_SECONDS)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # any byte stops uvicorn's own timer
        if self.cycle.response_complete and not self._in_head:  # else the next one has begun
            self._end_after(UNREAD_SECONDS if self._in_body else KEEP_ALIVE_SECONDS)

    # --------------------------------------------------------------------- what it does

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._application(scope, receive, send)
        finally:
            # uvicorn closes after an answer that was the last or broken off, once this returns.
            self.loop.call_soon(self._end_if_closing)

    def _end_if_closing(self) -> None:
        if self.transport.is_closing() and self in self.connections:
            self._close()

    def _refuse(self, error: WorkerError) -> NoReturn:
        """Stop the parser; `_feed` then answers."""
        self._refusal = error
        raise error

    def _count_head(self, size: int) -> None:
        self._head_parsed += size
        if self._head_parsed > MAX_HEAD_BYTES:
            self._refuse(_too_large("bytes", MAX_HEAD_BYTES, self._head_parsed))

    def _answer(self, error: WorkerError) -> None:
        """Answer with an error, unless it would be taken for another request's answer; close."""
        if self.transport.is_closing():
            return
        self._limits.log("a request was refused: %s", error)
        cycle, self._refused = self.cycle, True
        is_own = self._in_body and not self.pipeline and not cycle.response_started
        if cycle is not None and not cycle.response_complete and not is_own:
            self._close()
            return
        head, body = error_response(error, "native")
        headers = [*head["headers"], (b"connection", b"close")]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[error.status] + lines + b"\r\n" + body)
        self.transport.write_eof()
        self._end_after(LINGER_SECONDS)

    def _end_after(self, seconds: float | None) -> None:
        """Close the connection in so many seconds, in the place of what was set before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if seconds is not None:
            self._timer = self.loop.call_later(seconds, self._close)

    def _close(self) -> None:
        """Closing waits for what is written to be taken, and would do so for ever."""
        self._end_after(None)
        self.transport.close()
        self._timer = self.loop.call_later(PIECE_SECONDS, self.transport.abort)


def _too_large(what: str, limit: int, given: int) -> HeadTooLargeError:
    return HeadTooLargeError(
        f"the request's head must have at most {limit} {what}. Given: {given} or more"
    )
