"""What every HTTP request passes before a route sees it, and on its way out.

    site ─▶ key ─▶ place ─▶ size ─▶ body ─▶ route ─▶ answer ─▶ one log line, one count

A refusal costs nothing: the body is not read before the key is right, a place is free and the size
it declares is allowed. A caller who hangs up has the route cancelled, and with it its place in the
queue.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from urllib.parse import urlsplit

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import (
    ForbiddenError,
    OverloadedError,
    SlowBodyError,
    TooLargeError,
    UnauthorizedError,
    WorkerError,
)
from ..serving.dialects import error_in
from ..settings import Settings
from .memory import HeldBytes
from .metrics import Metrics

access = logging.getLogger("bge_worker.access")
log = logging.getLogger(__name__)

# RunPod's own: 30 MB through a load balancer, 20 MB by /runsync, 10 MB by /run.
MAX_BYTES, RUNSYNC_BYTES, RUN_BYTES = 30_000_000, 20_000_000, 10_000_000
BODY_SECONDS = 60.0  # in which a body must have arrived
PIECE_BYTES = 1 << 20  # of an answer, written at once
PIECE_SECONDS = 60.0  # in which a caller must have taken one
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
    held: int = 0  # bytes, in the server's account
    complete: bool = False


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        held: HeldBytes,
        route_of: Callable[[Scope], tuple[str, str]],
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        """`route_of` tells a request's route template and dialect."""
        self._app = app
        self._key = None if settings.api_key is None else settings.api_key.encode()
        # Without a key, whoever can reach a loopback address may ask; a page in a browser could.
        self._own_names_only = settings.api_key is None and not settings.insecure
        self._max_inside = settings.max_queue
        self._inside = 0
        self._held = held
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
            await self._pass(scope, receive, self._outgoing(send, exchange), exchange)
        except HungUpError:
            exchange.status = HUNG_UP
        except asyncio.CancelledError:  # by the server, which has no more time to wait
            if exchange.status == 0:
                stopping = OverloadedError("this worker is stopping")
                await send_error(stopping, dialect, self._outgoing(send, exchange))
        finally:
            self._held.give_back(exchange.held)
            self._note(exchange, perf_counter() - began)

    async def _pass(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> None:
        try:
            exchange.read = scope["method"] != "POST"  # nothing to read
            self._check_site(scope)
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
        except WorkerError as error:
            # The rest of a body that was not read is not waited for.
            await send_error(error, exchange.dialect, send, close=not exchange.read)

    def _check_key(self, scope: Scope, route: str) -> None:
        """Raises UnauthorizedError: the route wants a key, and this is not it."""
        if self._key is None or route in OPEN_ROUTES:
            return
        given = _header(scope, b"authorization")
        scheme, _, key = given.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
            what = "the key given is not right" if given else "none was given"
            raise UnauthorizedError(f"`Authorization: Bearer <key>` is required; {what}")

    def _check_site(self, scope: Scope) -> None:
        """Raises ForbiddenError: a page of another site sends this request from a browser.

        Such a page cannot set these headers: `Host` names it if its name was pointed at this
        address (DNS rebinding), `Sec-Fetch-Site` and `Origin` come with what it sends elsewhere.
        """
        host = _header(scope, b"host")
        own_name = self._own_names_only and host and is_loopback(scope["server"][0])
        if own_name and not is_loopback(_name_in(host)):
            raise ForbiddenError(
                "`Host` must be localhost or a loopback address where `BGE_API_KEY` is not set"
            )
        if self._key is not None or scope["method"] != "POST":
            return  # a page of another site does not have the key
        site, origin = _header(scope, b"sec-fetch-site"), _header(scope, b"origin")
        same = site in (b"same-origin", b"none") if site else origin.partition(b"//")[2] == host
        if (site or origin) and not same:
            raise ForbiddenError("cross-site requests of browsers are refused")

    def _check_place(self, expected: int) -> None:
        """Raises OverloadedError: there is no room for another request of `expected` bytes."""
        if self._inside >= self._max_inside:
            raise OverloadedError(
                f"{self._inside} requests are being answered (`BGE_MAX_QUEUE`); try again later"
            )
        self._held.check(expected)

    def _hold(self, exchange: Exchange, size: int) -> None:
        """Raises OverloadedError: there is no room for so many bytes more."""
        self._held.take(size)
        exchange.held += size

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
                    self._hold(exchange, len(chunks[-1]))
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

    def _outgoing(self, send: Send, exchange: Exchange) -> Send:
        """`send`, adding the request's id, noting what is sent, and cutting it into pieces.

        Each piece waits for room in the connection's buffer: an answer that nobody reads is held
        in the account, and a caller too slow for it is dropped. An answer that does not fit the
        account is replaced by an error, so the head is sent with the first piece.
        """
        head: Message | None = None

        async def outgoing(message: Message) -> None:
            nonlocal head
            if message["type"] == "http.response.start":
                head = message
                return
            body, more = message.get("body", b""), message.get("more_body", False)
            try:
                self._hold(exchange, len(body))
            except OverloadedError as error:
                if head is None:
                    raise HungUpError from None
                head, body = error_response(error, exchange.dialect)
                more = False
            if head is not None:
                exchange.status = head["status"]
                request_id = (b"x-request-id", exchange.id.encode())
                head["headers"] = [*head.get("headers", ()), request_id]
            first, head = head, None
            await _send_pieces(first, body, more, send, exchange)

        return outgoing

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


@lru_cache(maxsize=16)  # callers use the same few; to parse one costs as much as /ping
def _name_in(host: bytes) -> str:
    """The name or address in a `Host` header, without its port."""
    try:
        return (urlsplit(b"//" + host).hostname or b"").decode("latin1")
    except ValueError:  # half an IPv6 address
        return ""


@lru_cache(maxsize=16)
def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def send_error(error: WorkerError, dialect: str, send: Send, *, close: bool = False) -> None:
    """Answer with an error in the words of the route's dialect."""
    head, body = error_response(error, dialect)
    head["headers"] += [(b"connection", b"close")] if close else []
    await send(head)
    await send({"type": "http.response.body", "body": body})


def error_response(error: WorkerError, dialect: str) -> tuple[Message, bytes]:
    """The head and the body of an error's answer."""
    body = orjson.dumps(error_in(dialect, error))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *error_headers(error),
    ]
    return {"type": "http.response.start", "status": error.status, "headers": headers}, body


def error_headers(error: WorkerError) -> list[tuple[bytes, bytes]]:
    """What else a status asks for: when to come back, or how to show the key."""
    if isinstance(error, UnauthorizedError):
        return [(b"www-authenticate", b"Bearer")]
    return [(b"retry-after", b"1")] if error.retry and error.status in (429, 503) else []


def _most_bytes(route: str) -> int:
    """RunPod's limits hold on RunPod's routes, so that what fits here fits there."""
    if route.endswith("/runsync"):
        return RUNSYNC_BYTES
    return RUN_BYTES if route.endswith("/run") else MAX_BYTES


def _too_large(most: int, given: int) -> TooLargeError:
    return TooLargeError(f"the body must be at most {most} bytes. Given: {given} or more")


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


async def _send_pieces(
    head: Message | None, body: bytes, more: bool, send: Send, exchange: Exchange
) -> None:
    """Raises HungUpError: the caller did not take a piece in time."""
    for start in range(0, len(body) or 1, PIECE_BYTES):
        piece = body[start : start + PIECE_BYTES]
        exchange.sent += len(piece)
        last = start + PIECE_BYTES >= len(body) and not more
        try:
            async with asyncio.timeout(PIECE_SECONDS):
                if head is not None and start == 0:
                    await send(head)
                exchange.complete = last
                await send({"type": "http.response.body", "body": piece, "more_body": not last})
        except TimeoutError:
            raise HungUpError from None


def _replay(body: bytes) -> Receive:
    """A body that has been read, for the route to read."""

    async def replay() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
