"""Listening sockets, and uvicorn in this server's configuration."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp

from ..errors import StartError
from ..serving.validation import shortened
from ..settings import Settings
from .connections import Connection, ConnectionLimits
from .draining import Drain
from .middleware import is_loopback
from .timeouts import Timeouts

if TYPE_CHECKING:  # imports torch
    from ..serving.service import Service

CLOSE_SECONDS = 5  # for connections when the requests in flight have ended
# After this the kernel drops a caller who stops reading, or whose machine is gone.
STALLED_SECONDS = 60


def check_exposed(host: str, settings: Settings) -> None:
    """Raises StartError if anyone who reaches the port could use the worker."""
    if settings.api_key is not None or settings.insecure or is_loopback(host):
        return
    raise StartError(
        f"`--host {host}` can be reached from other machines and `BGE_API_KEY` is not set. Set it, "
        "or pass `--insecure` (`BGE_INSECURE=1`) if a proxy in front checks callers"
    )


def read_ports(option: str | None, env: Mapping[str, str]) -> list[int]:
    """Return the ports for callers and for RunPod's health checks, which may be the same.

    Raises StartError: a value is not a port.
    """
    name, value = ("PORT", env.get("PORT", "8000")) if option is None else ("--port", option)
    return sorted({_port(name, value), _port("PORT_HEALTH", env.get("PORT_HEALTH", value))})


def _port(name: str, value: str) -> int:
    is_number = value.isascii() and value.isdigit() and len(value) <= 5
    if not is_number or not 1 <= int(value) <= 65535:
        raise StartError(
            f"`{name}` must be a port, a whole number from 1 to 65535. Given: {shortened(value)}"
        )
    return int(value)


def listen(host: str, port: int, stalled_seconds: float = STALLED_SECONDS) -> socket.socket:
    """Raises StartError if the address is in use or is not this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        is_taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "the port is in use; set another with `PORT` or `--port`" if is_taken else error
        raise StartError(f"cannot listen on {host}:{port}: {reason}") from None
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; accepted connections inherit it
        milliseconds = round(stalled_seconds * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listener


class StoppableServer(uvicorn.Server):
    """A signal starts the drain; a second one stops the server without waiting for its end.

    While the models load, a signal ends the process at once: loading cannot be interrupted, and no
    request has been accepted.
    """

    def __init__(self, config: uvicorn.Config, service: Future[Service], drain: Drain) -> None:
        super().__init__(config)
        self._service = service
        self._drain = drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self._service.done():
            os._exit(0)
        if self._drain.is_stopping:
            super().handle_exit(sig, frame)
        else:
            self._drain.start()

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop. uvicorn asks ten times a second."""
        self.should_exit = self.should_exit or self._drain.is_over
        return await super().on_tick(counter)


def configuration(
    app: ASGIApp, limits: ConnectionLimits, timeouts: Timeouts, close_seconds: int = CLOSE_SECONDS
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=partial(Connection, limits=limits, timeouts=timeouts),  # type: ignore[arg-type]
        ws="none",  # websockets would bypass the key and the timers
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=close_seconds,
    )
