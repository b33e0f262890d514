"""The driver of exchanges for asyncio, with httpx2."""

from __future__ import annotations

import asyncio
import os
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TypeVar

from .deadline import Deadline
from .errors import ConfigurationError
from .protocol import Exchange, Pause, Request, Response, Step, check_size
from .transport import CONNECT_SECONDS, MAX_CONNECTIONS, transport_error

try:
    import anyio
    import httpx2
except ImportError as error:
    raise ImportError(
        f"AsyncClient needs {error.name}: pip install 'bge-client[async]'", name=error.name
    ) from None

MAX_OPEN_CONNECTIONS = 256  # further requests wait for one of them
T = TypeVar("T")


class AsyncTransport:
    """Runs exchanges with the server at `url`, in any event loop and process."""

    def __init__(self, url: str, key: str | None, session: httpx2.AsyncClient | None) -> None:
        self.url = url
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._passed_session = session
        try:
            self._tls = httpx2.create_ssl_context() if session is None else None
        except OSError as error:
            raise ConfigurationError(f"the TLS certificates cannot be read: {error}") from None
        self._sessions: list[httpx2.AsyncClient] = []  # the last one is in use
        self._owner: tuple[object, int] | None = None  # their event loop and process

    async def aclose(self) -> None:
        """Close the connections, except those of a `session` that was passed."""
        owner, self._owner = self._owner, None
        if owner == (asyncio.get_running_loop(), os.getpid()):
            for session in self._sessions:
                await session.aclose()

    async def run(self, exchange: Exchange[T], deadline: Deadline) -> T:
        """Return the result of an exchange, or raise its error."""
        try:
            step = next(exchange)
            while True:
                try:
                    response = await self._perform(step, deadline)
                except BaseException as error:
                    step = exchange.throw(error)
                else:
                    step = exchange.send(response)  # type: ignore[arg-type]  # None after a pause
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _perform(self, step: Step, deadline: Deadline) -> Response | None:
        if isinstance(step, Request):
            if not step.is_cleanup:
                return await self._send(step, deadline)
            # The task of the call may be cancelled again: this one goes on.
            cleanup = asyncio.ensure_future(self._send(step, Deadline(step.read_timeout)))
            return await asyncio.shield(cleanup)
        if isinstance(step, Pause):
            await asyncio.sleep(min(step.seconds, deadline.remaining))
            deadline.check()
        elif self._passed_session is None:
            self._sessions.append(self._new_session())  # requests in flight keep the old one
        return None

    async def _send(self, request: Request, deadline: Deadline) -> Response:
        """Send one request.

        Raises:
            TransportError: no response, or an incomplete one.
            DeadlineError: the deadline has passed.
        """
        deadline.start()
        deadline.check()
        body = bytearray()
        has_body = request.body is not None
        headers = self._headers | ({"Content-Type": "application/json"} if has_body else {})
        timeout = httpx2.Timeout(request.read_timeout, connect=CONNECT_SECONDS, pool=None)
        try:
            with anyio.move_on_after(deadline.remaining):
                async with self._session().stream(
                    request.method,
                    self.url + request.path,
                    content=request.body,
                    headers=headers,
                    timeout=timeout,
                    follow_redirects=False,  # a redirected POST becomes a GET
                ) as response:
                    async for piece in response.aiter_bytes():
                        body += piece
                        check_size(body)
                return Response(response.status_code, response.headers, bytes(body))
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            is_invalid = isinstance(error, (httpx2.InvalidURL, httpx2.UnsupportedProtocol))
            is_timeout = isinstance(error, httpx2.TimeoutException)
            raise transport_error(self.url, error, is_timeout, is_invalid) from None
        raise deadline.error()

    def _session(self) -> httpx2.AsyncClient:
        if self._passed_session is not None:
            return self._passed_session
        owner = asyncio.get_running_loop(), os.getpid()
        if owner != self._owner:  # connections of another event loop or process are of no use
            self._sessions, self._owner = [self._new_session()], owner
        return self._sessions[-1]

    def _new_session(self) -> httpx2.AsyncClient:
        limits = httpx2.Limits(
            max_connections=MAX_OPEN_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS
        )
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        return httpx2.AsyncClient(verify=self._tls or True, limits=limits, cookies=no_cookies)
