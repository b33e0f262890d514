"""What every HTTP request passes before a route sees it, and on its way out.

    key ─▶ place ─▶ size ─▶ body ─▶ route ─▶ answer ─▶ one log line, one count

A refusal costs nothing: the body is not read before the key is right, a place is free and the size
it declares is allowed. A caller who hangs up has the route cancelled, and with it its place in the
queue.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .dialects import error_in
from .errors import (
    OverloadedError,
    SlowBodyError,
    TooLargeError,
    UnauthorizedError,
    WorkerError,
)
from .metrics import Metrics
from .settings import Settings

access = logging.getLogger("bge_worker.access")
log = logging.getLogger(__name__)

# RunPod's own: 30 MB through a load balancer, 20 MB by /runsync, 10 MB by /run.
MOST_BYTES, RUNSYNC_BYTES, RUN_BYTES = 30_000_000, 20_000_000, 10_000_000
BODY_SECONDS = 60.0  # in which a body must have arrived
PIECE_BYTES = 1 << 20  # of an answer, written at once
PIECE_SECONDS = 60.0  # in which a caller must have taken one
MOST_INSIDE_BYTES = 1 << 29  # bodies of the requests being answered, together
HUNG_UP = 499  # nobody is told: the caller is gone
OPEN_ROUTES = ("/ping", "/health")
QUIET_ROUTES = (*OPEN_ROUTES, "/metrics")  # asked every few seconds


class HungUpError(Exception):
    """The caller closed the connection before the end of the body, or takes no more."""


@dataclass
class Exchange:
    """One request and what became of it."""

    route: str
    dialect: str
    method: str
    id: str
    status: int = 0
    received: int = 0
    read: bool = False  # all of the body
    sent: int = 0
    complete: bool = False


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        route_of: Callable[[Scope], tuple[str, str]],
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        """`route_of` tells a request's route template and dialect."""
        self._app = app
        self._key = None if settings.api_key is None else settings.api_key.encode()
        self._max_inside = settings.max_queue
        self._inside = self._bytes_inside = 0
        self._metrics = metrics
        self._route_of = route_of
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        route, dialect = self._route_of(scope)
        exchange = Exchange(route, dialect, scope["method"], uuid.uuid4().hex[:16])
        try:
            await self._pass(scope, receive, _outgoing(send, exchange), exchange)
        except HungUpError:
            exchange.status = HUNG_UP
        except asyncio.CancelledError:  # by the server, which has no more time to wait
            if exchange.status == 0:
                stopping = OverloadedError("this worker is stopping")
                await send_error(stopping, dialect, _outgoing(send, exchange))
        finally:
            self._note(exchange, perf_counter() - began)

    async def _pass(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> None:
        try:
            exchange.read = scope["method"] != "POST"  # nothing to read
            self._check_key(scope, exchange.route)
            if scope["method"] != "POST" or "/cancel/" in exchange.route:
                # Reads no body, computes nothing, and must work when the worker is full.
                await self._app(scope, receive, send)
                return
            most = _most_bytes(exchange.route)
            declared = _header(scope, b"content-length")
            expected = int(declared) if declared.isdigit() else 0
            if expected > most:
                raise _too_large(most, expected)
            self._check_place(expected)
            self._inside += 1
            try:
                body = await self._body(receive, exchange, most)
                await self._answer(scope, body, receive, send, exchange)
            finally:
                self._inside -= 1
                self._bytes_inside -= exchange.received
        except WorkerError as error:
            # The rest of a body that was not read is not waited for.
            await send_error(error, exchange.dialect, send, close=not exchange.read)

    def _check_key(self, scope: Scope, route: str) -> None:
        """Raises UnauthorizedError: the route wants a key, and this is not it."""
        if self._key is None or route in OPEN_ROUTES:
            return
        given = _header(scope, b"authorization")
        if not hmac.compare_digest(given, b"Bearer " + self._key):
            what = "the key given is not right" if given else "none was given"
            raise UnauthorizedError(f"`Authorization: Bearer <key>` is required; {what}")

    def _check_place(self, expected: int) -> None:
        """Raises OverloadedError: there is no room for another request of `expected` bytes."""
        if self._inside >= self._max_inside:
            raise OverloadedError(
                f"{self._inside} requests are being answered (`BGE_MAX_QUEUE`); try again later"
            )
        self._check_bytes(expected)

    def _check_bytes(self, expected: int = 0) -> None:
        """Raises OverloadedError: the bodies inside take more memory than they may."""
        if self._bytes_inside + expected > MOST_INSIDE_BYTES:
            raise OverloadedError(
                f"{self._bytes_inside} bytes of requests are being answered; try again later"
            )

    async def _body(self, receive: Receive, exchange: Exchange, most: int) -> bytes:
        """The whole body, of at most `most` bytes.

        Raises:
            TooLargeError: it is larger, and had not said so.
            OverloadedError: with it there are more bytes inside than may be.
            SlowBodyError: it did not arrive in time.
            HungUpError: it will not arrive.
        """
        chunks = []
        try:
            async with asyncio.timeout(self._body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise HungUpError
                    chunks.append(message.get("body", b""))
                    exchange.received += len(chunks[-1])
                    self._bytes_inside += len(chunks[-1])
                    self._check_bytes()
                    if exchange.received > most:
                        raise _too_large(most, exchange.received)
                    if not message.get("more_body", False):
                        exchange.read = True
                        return b"".join(chunks)
        except TimeoutError:
            raise SlowBodyError(
                f"the body must arrive within {self._body_seconds:g} seconds. "
                f"Given: {exchange.received} bytes"
            ) from None

    async def _answer(
        self, scope: Scope, body: bytes, receive: Receive, send: Send, exchange: Exchange
    ) -> None:
        """Run the route; cancel it if the caller hangs up first."""
        route = asyncio.ensure_future(self._app(scope, _replay(body), send))
        hung_up = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({route, hung_up}, return_when=asyncio.FIRST_COMPLETED)
            if not route.done() and not exchange.complete:
                route.cancel()
                exchange.status = HUNG_UP
            with suppress(asyncio.CancelledError):
                await route
        finally:
            # On shutdown it is this very task that is cancelled.
            route.cancel()
            hung_up.cancel()

    def _note(self, exchange: Exchange, seconds: float) -> None:
        self._metrics.answered(exchange.route, exchange.status, seconds)
        if exchange.route in QUIET_ROUTES and exchange.status < 400:
            return
        line = {
            "id": exchange.id,
            "method": exchange.method,
            "route": exchange.route,
            "status": exchange.status,
            "ms": round(seconds * 1e3, 2),
            "received": exchange.received,
            "sent": exchange.sent,
        }
        access.info("%s", orjson.dumps(line).decode())


async def send_error(error: WorkerError, dialect: str, send: Send, *, close: bool = False) -> None:
    """Answer with an error in the words of the route's dialect."""
    body = orjson.dumps(error_in(dialect, error))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *error_headers(error),
        *([(b"connection", b"close")] if close else []),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_headers(error: WorkerError) -> list[tuple[bytes, bytes]]:
    """What else a status asks for: when to come back, or how to show the key."""
    if isinstance(error, UnauthorizedError):
        return [(b"www-authenticate", b"Bearer")]
    return [(b"retry-after", b"1")] if error.retry and error.status in (429, 503) else []


def _most_bytes(route: str) -> int:
    """RunPod's limits hold on RunPod's routes, so that what fits here fits there."""
    if route.endswith("/runsync"):
        return RUNSYNC_BYTES
    return RUN_BYTES if route.endswith("/run") else MOST_BYTES


def _too_large(most: int, given: int) -> TooLargeError:
    return TooLargeError(f"the body must be at most {most} bytes. Given: {given} or more")


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _outgoing(send: Send, exchange: Exchange) -> Send:
    """`send`, adding the request's id, noting what is sent, and cutting it into pieces.

    Each piece waits for room in the connection's buffer: an answer that nobody reads keeps its
    place and its memory, and a caller too slow for it is dropped.
    """

    async def outgoing(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            request_id = (b"x-request-id", exchange.id.encode())
            message["headers"] = [*message.get("headers", ()), request_id]
            await send(message)
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        for start in range(0, len(body) or 1, PIECE_BYTES):
            piece = body[start : start + PIECE_BYTES]
            exchange.sent += len(piece)
            last = start + PIECE_BYTES >= len(body) and not more
            exchange.complete = last
            try:
                async with asyncio.timeout(PIECE_SECONDS):
                    await send({"type": message["type"], "body": piece, "more_body": not last})
            except TimeoutError:
                raise HungUpError from None

    return outgoing


def _replay(body: bytes) -> Receive:
    """A body that has been read, for the route to read."""

    async def replay() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
