"""What every HTTP request passes before its route, and what its reply passes after it.

    site ─▶ key ─▶ declared size ─▶ slot ─▶ body ─▶ endpoint ─▶ reply ─▶ one log line, one count

A refusal is cheap: the body is not read before the key is right, a slot is free and the declared
size is allowed. If the caller disconnects, the route is cancelled, which takes its request out of
the queue.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from urllib.parse import urlsplit

import orjson
from starlette.types import Message, Receive, Scope, Send

from .. import errors
from ..errors import OverloadedError, WorkerError
from ..logs import FIELDS
from ..settings import Settings
from .draining import Drain
from .memory import HeldBytes
from .metrics import Metrics
from .routes.route import Dialect
from .routing import UNKNOWN_PATH, Endpoint, Router
from .timeouts import Timeouts

access_log = logging.getLogger("bge_worker.access")

# RunPod's limits: 30 MB through a load balancer, 20 MB by /runsync, 10 MB by /run.
MAX_BODY_BYTES, MAX_RUNSYNC_BYTES, MAX_RUN_BYTES = 30_000_000, 20_000_000, 10_000_000
CHUNK_BYTES = 1 << 20  # of a reply, written at once
CLIENT_CLOSED_REQUEST = 499  # for the log: the caller is gone
OPEN_PATHS = ("/ping", "/health")  # without a key
# Without a key, and without data: a browser cannot send a key when it opens a page.
PAGE_PATHS = ("/", "/page/{file}", "/docs", "/docs/{file}", "/openapi.json")
UNLOGGED_PATHS = (*OPEN_PATHS, "/metrics")  # polled every few seconds


class DisconnectedError(Exception):
    """The caller closed the connection before the end of the body, or stopped reading."""


@dataclass
class Exchange:
    """One request and its reply. `dialect` is that of its errors: a body may change it."""

    endpoint: Endpoint | None
    dialect: Dialect
    method: str
    id: str
    status: int = 0
    received: int = 0  # bytes
    is_read: bool = False  # the whole body
    sent: int = 0  # bytes
    held: int = 0  # bytes, counted in HeldBytes
    is_complete: bool = False

    @property
    def route(self) -> str:
        """The path's template: what the caller sent in its place is not logged."""
        return self.endpoint.path if self.endpoint else "unknown"


class Middleware:
    """The ASGI application around the endpoints."""

    def __init__(
        self,
        router: Router,
        settings: Settings,
        metrics: Metrics,
        held: HeldBytes,
        timeouts: Timeouts,
        drain: Drain,
    ) -> None:
        self._router = router
        self._key = None if settings.api_key is None else settings.api_key.encode()
        # Without a key, a web page in a browser could send requests to a loopback address.
        self._loopback_names_only = settings.api_key is None and not settings.insecure
        self._cors_origins = settings.cors_origins
        self._max_in_flight = settings.max_queue
        self._drain = drain
        self._held = held
        self._metrics = metrics
        self._timeouts = timeouts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # neither websockets nor lifespan events are configured
        began = perf_counter()
        endpoint = self._router.find(scope)
        dialect = endpoint.dialect if endpoint else UNKNOWN_PATH
        exchange = Exchange(endpoint, dialect, scope["method"], uuid.uuid4().hex[:16])
        scope["exchange"] = exchange
        send = self._wrap_send(send, exchange)
        try:
            await self._pass(scope, receive, send, exchange)
        except DisconnectedError:
            exchange.status = CLIENT_CLOSED_REQUEST
        except asyncio.CancelledError:  # the server stops and waits no longer
            if exchange.status == 0:
                error = errors.StoppingError("this worker is stopping")
                await send_error(error, exchange.dialect, send)
        finally:
            self._held.give_back(exchange.held)
            self._log(exchange, perf_counter() - began)

    async def _pass(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> None:
        """Run the checks and the route; turn errors into replies of the dialect."""
        try:
            exchange.is_read = scope["method"] != "POST"  # nothing to read
            self._check_site(scope)
            self._check_key(scope, exchange.route)
            endpoint = exchange.endpoint
            if endpoint is not None and endpoint.reads_body:
                await self._pass_with_body(scope, receive, send, exchange)
                return
            if endpoint is not None:
                exchange.is_read = True  # uvicorn discards a body
            await self._router.dispatch(endpoint, scope, receive, send)
        except WorkerError as error:
            # The rest of a body that was not read is not waited for.
            await send_error(error, exchange.dialect, send, close=not exchange.is_read)
        except DisconnectedError:
            raise
        except Exception as error:
            await send_error(errors.logged_inference_error(error), exchange.dialect, send)

    async def _pass_with_body(
        self, scope: Scope, receive: Receive, send: Send, exchange: Exchange
    ) -> None:
        limit = _max_bytes(exchange.route)
        declared = _header(scope, b"content-length")
        expected = int(declared) if declared.isdigit() else 0
        if expected > limit:
            raise _too_large(limit, expected)
        self._check_slot(expected)
        self._drain.in_flight += 1
        try:
            body = await self._read_body(receive, exchange, limit)
            await self._run_route(scope, body, receive, send, exchange)
        finally:
            self._drain.in_flight -= 1

    def _check_key(self, scope: Scope, route: str) -> None:
        """Raises UnauthorizedError if the route requires a key and this is not it."""
        # A POST there is none of its routes, and its body is not read without a key.
        is_open = route in (*OPEN_PATHS, *PAGE_PATHS) and scope["method"] != "POST"
        if self._key is None or is_open:
            return
        header = _header(scope, b"authorization")
        scheme, _, key = header.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
            given = "a wrong key" if header else "no key"
            raise errors.UnauthorizedError(
                f"`Authorization: Bearer <key>` is required. Given: {given}"
            )

    def _check_site(self, scope: Scope) -> None:
        """Raises ForbiddenError for a request that a page of another site sends from a browser.

        The page cannot set these headers: `Host` is its own name if that name points to this
        address (DNS rebinding), `Sec-Fetch-Site` and `Origin` come with cross-site requests.
        """
        host = _header(scope, b"host")
        check_name = self._loopback_names_only and host and is_loopback(scope["server"][0])
        if check_name and not is_loopback(_name_in(host)):
            raise errors.ForbiddenError(
                "`Host` must be localhost or a loopback address where `BGE_API_KEY` is not set"
            )
        if self._key is not None or scope["method"] != "POST":
            return  # a page of another site does not have the key
        site, origin = _header(scope, b"sec-fetch-site"), _header(scope, b"origin")
        if "*" in self._cors_origins or origin.decode("latin1") in self._cors_origins:
            return
        is_same = site in (b"same-origin", b"none") if site else origin.partition(b"//")[2] == host
        if (site or origin) and not is_same:
            raise errors.ForbiddenError("cross-site requests of browsers are refused")

    def _check_slot(self, expected: int) -> None:
        """Raises OverloadedError if another request of `expected` bytes exceeds a limit,
        StoppingError if the server stops."""
        if self._drain.is_stopping:
            raise errors.StoppingError("this worker is stopping")
        if self._drain.in_flight >= self._max_in_flight:
            raise OverloadedError(
                f"{self._drain.in_flight} requests are in flight (`BGE_MAX_QUEUE`); try again later"
            )
        self._held.check(expected)

    def _hold(self, exchange: Exchange, size: int) -> None:
        """Raises OverloadedError if `size` more bytes exceed the limit."""
        self._held.take(size)
        exchange.held += size

    async def _read_body(self, receive: Receive, exchange: Exchange, limit: int) -> bytes:
        """Return the body, of at most `limit` bytes.

        Raises:
            TooLargeError: it is larger, without a Content-Length that says so.
            OverloadedError: with it, too many bytes are held.
            SlowBodyError: it did not arrive in time.
            DisconnectedError: it will not arrive.
        """
        chunks = []
        try:
            async with asyncio.timeout(self._timeouts.body):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise DisconnectedError
                    chunks.append(message.get("body", b""))
                    exchange.received += len(chunks[-1])
                    self._hold(exchange, len(chunks[-1]))
                    if exchange.received > limit:
                        raise _too_large(limit, exchange.received)
                    if not message.get("more_body", False):
                        exchange.is_read = True
                        return b"".join(chunks)
        except TimeoutError:
            raise errors.SlowBodyError(
                f"the body must arrive within {self._timeouts.body:g} seconds. "
                f"Given: {exchange.received} bytes"
            ) from None

    async def _run_route(
        self, scope: Scope, body: bytes, receive: Receive, send: Send, exchange: Exchange
    ) -> None:
        """Run the route; cancel it if the caller disconnects first."""
        route = asyncio.create_task(
            self._router.dispatch(exchange.endpoint, scope, _replay(body), send)
        )
        disconnected = asyncio.create_task(_wait_for_disconnect(receive))
        try:
            await asyncio.wait({route, disconnected}, return_when=asyncio.FIRST_COMPLETED)
            if not route.done() and not exchange.is_complete:
                route.cancel()
                exchange.status = CLIENT_CLOSED_REQUEST
            with suppress(asyncio.CancelledError):
                await route
        finally:
            # On shutdown this task itself is cancelled.
            route.cancel()
            disconnected.cancel()

    def _wrap_send(self, send: Send, exchange: Exchange) -> Send:
        """Wrap `send`: add the request's id, count the bytes, send the body in chunks.

        A reply that exceeds `HeldBytes` is replaced by an error, so the head is sent together with
        the first chunk.
        """
        head: Message | None = None

        async def wrapped(message: Message) -> None:
            nonlocal head
            if message["type"] == "http.response.start":
                head = message
                return
            body, more = message.get("body", b""), message.get("more_body", False)
            try:
                self._hold(exchange, len(body))
            except OverloadedError as error:
                if head is None:
                    raise DisconnectedError from None
                head, body = error_response(error, exchange.dialect)
                more = False
            if head is not None:
                exchange.status = head["status"]
                request_id = (b"x-request-id", exchange.id.encode())
                head["headers"] = [*head.get("headers", ()), request_id]
            first, head = head, None
            await self._send_chunks(first, body, more, send, exchange)

        return wrapped

    async def _send_chunks(
        self, head: Message | None, body: bytes, more: bool, send: Send, exchange: Exchange
    ) -> None:
        """Send a body in chunks, each of which waits for room in the connection's buffer.

        Raises DisconnectedError: the caller did not take a chunk in time.
        """
        for start in range(0, len(body) or 1, CHUNK_BYTES):
            chunk = body[start : start + CHUNK_BYTES]
            exchange.sent += len(chunk)
            is_last = start + CHUNK_BYTES >= len(body) and not more
            try:
                async with asyncio.timeout(self._timeouts.chunk):
                    if head is not None and start == 0:
                        await send(head)
                    exchange.is_complete = is_last
                    await send(
                        {"type": "http.response.body", "body": chunk, "more_body": not is_last}
                    )
            except TimeoutError:
                raise DisconnectedError from None

    def _log(self, exchange: Exchange, seconds: float) -> None:
        self._metrics.answered(exchange.route, exchange.status, seconds)
        if exchange.route in UNLOGGED_PATHS and exchange.status < 400:
            return
        fields = {
            "id": exchange.id,
            "method": exchange.method,
            "route": exchange.route,
            "status": exchange.status,
            "ms": round(seconds * 1e3, 2),
            "received": exchange.received,
            "sent": exchange.sent,
        }
        access_log.info("request", extra={FIELDS: fields})


@lru_cache(maxsize=16)  # few values in practice, and parsing takes as long as all of /ping
def _name_in(host: bytes) -> str:
    """Return the name or address in a `Host` header, without its port."""
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


async def send_error(
    error: WorkerError, dialect: Dialect, send: Send, *, close: bool = False
) -> None:
    head, body = error_response(error, dialect)
    head["headers"] += [(b"connection", b"close")] if close else []
    await send(head)
    await send({"type": "http.response.body", "body": body})


def error_response(error: WorkerError, dialect: Dialect) -> tuple[Message, bytes]:
    """Return the head and the body of an error's response."""
    body = orjson.dumps(dialect.error_body(error))
    status = dialect.status(error)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((name.encode(), value.encode()) for name, value in error.headers),
    ]
    return {"type": "http.response.start", "status": status, "headers": headers}, body


def _max_bytes(route: str) -> int:
    """RunPod's limits apply to its own routes, so that a body accepted here is accepted there."""
    if route.endswith("/runsync"):
        return MAX_RUNSYNC_BYTES
    return MAX_RUN_BYTES if route.endswith("/run") else MAX_BODY_BYTES


def _too_large(limit: int, given: int) -> errors.TooLargeError:
    return errors.TooLargeError(f"the body must be at most {limit} bytes. Given: {given} or more")


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _replay(body: bytes) -> Receive:
    """Return a `receive` that delivers a body which has been read already."""

    async def replay() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
