"""The HTTP entry: the workstation's server, and RunPod's load-balancing endpoints.

python worker/server.py                        on 127.0.0.1:8000
python worker/server.py --host 0.0.0.0         with BGE_API_KEY set
(PORT and PORT_HEALTH set, as RunPod does)     there

/ping answers from the start; the models load meanwhile, and requests wait for them.
"""

from __future__ import annotations

import gc

# What the imports below make stays: looking for garbage among it costs 0.3 s of a start.
gc.disable()

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp

from bge_worker.errors import StartError, WorkerError
from bge_worker.http.app import Server
from bge_worker.http.connections import Connection, ConnectionLimits, connection_limits
from bge_worker.http.metrics import Metrics
from bge_worker.http.middleware import is_loopback
from bge_worker.process import prepare_process
from bge_worker.serving.requests import shortened
from bge_worker.settings import SERVER_REPLY_BYTES, Settings
from bge_worker.startup import mark, read_ahead

if TYPE_CHECKING:
    from bge_worker.serving.service import Service

CLOSE_SECONDS = 5  # for a micro-batch that nobody waits for any more
GRACE_SECONDS = 30  # for what is in flight when the server is told to stop
# A caller who stops reading, or is gone without a word, is dropped by the kernel after this.
STALLED_SECONDS = 60
log = logging.getLogger("bge_worker.server")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Serve BGE embeddings and reranking over HTTP.",
        epilog="The BGE_… environment variables say which models, on what device, within which "
        "limits; the README lists them.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", help="$PORT, or 8000")
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="listen beyond this machine without BGE_API_KEY: something in front checks callers",
    )
    return parser.parse_args()


def check_exposed(host: str, settings: Settings) -> None:
    """Raises StartError: anyone who can reach the port could use the worker."""
    if settings.api_key is not None or settings.insecure or is_loopback(host):
        return
    raise StartError(
        f"`--host {host}` can be reached from other machines and `BGE_API_KEY` is not set. Set it, "
        "or pass `--insecure` (`BGE_INSECURE=1`) if something in front checks callers"
    )


def ports(option: str | None, env: Mapping[str, str]) -> list[int]:
    """Where to listen: for callers, and where RunPod's load balancer asks for /ping.

    Raises:
        StartError: one of them is no port.
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
    """Raises StartError: the address is taken or is not this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise StartError(f"cannot listen on {host}:{port}: {error}") from None
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; accepted connections inherit it
        milliseconds = round(stalled_seconds * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listener


class StoppableServer(uvicorn.Server):
    """uvicorn's, which finishes what is in flight; but while the models load it stops at once.

    Threads deep in a library cannot be asked to stop, and nothing was promised yet.
    """

    def __init__(self, config: uvicorn.Config, models: Future[Service]) -> None:
        super().__init__(config)
        self._models = models

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self._models.done():
            os._exit(0)
        super().handle_exit(sig, frame)


def load(settings: Settings, metrics: Metrics, models: Future[Service]) -> None:
    """Resolve `models`; whatever goes wrong is theirs to raise."""
    try:
        mark("python, listening")
        read_ahead((settings.embed_model, settings.rerank_model))
        from bge_worker.serving.service import Service

        mark("torch imported")
        service = Service.start(settings, observe=metrics.computed)
        mark("models loaded")
        asyncio.run(service.check())
        mark("fitness check passed")
        metrics.watch(service)
        gc.freeze()
        gc.enable()
        log.info("ready")
        models.set_result(service)
    except BaseException as error:  # a panic of the tokenizer's is no Exception
        unfit = isinstance(error, RuntimeError | WorkerError)  # from `check`, or the device
        log.debug("the models were not loaded", exc_info=error)
        if not isinstance(error, StartError):
            what = error if unfit else type(error).__name__
            error = StartError(f"this machine is not fit: {what}")
        models.set_exception(error)


def configuration(
    app: ASGIApp, limits: ConnectionLimits, grace_seconds: int = GRACE_SECONDS
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=partial(Connection, limits=limits),  # type: ignore[arg-type]
        ws="none",  # its connections would pass neither the key nor the timers
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace_seconds,
    )


def serve(settings: Settings, listeners: list[socket.socket]) -> None:
    """Until a signal. Raises StartError: the models cannot be loaded."""
    metrics = Metrics()
    models: Future[Service] = Future()
    app = Server(settings, metrics, models).asgi
    server = StoppableServer(configuration(app, connection_limits()), models)

    def stop_if_failed(loaded: Future[Service]) -> None:
        if loaded.exception() is not None:  # only ever set: a signal may have set it already
            server.should_exit = True

    models.add_done_callback(stop_if_failed)
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # uvicorn puts its own handler here and, once it is done, raises the signal once more.
        if signal.getsignal(name) != signal.SIG_IGN:  # as nohup has it
            signal.signal(name, server.handle_exit)
    # A daemon: a signal while it loads must not wait for it.
    threading.Thread(target=load, args=(settings, metrics, models), daemon=True).start()
    try:
        server.run(sockets=listeners)
    finally:
        if models.done() and models.exception() is None:
            models.result().close(timeout=CLOSE_SECONDS)
    if models.done():
        models.result()  # raises what stopped the server


def main() -> None:
    given = arguments()
    prepare_process()
    logging.basicConfig(level=logging.INFO, format="%(levelname)-7s| %(message)s")
    try:
        settings = Settings.from_env(os.environ, max_reply_bytes=SERVER_REPLY_BYTES)
        settings = replace(settings, insecure=settings.insecure or given.insecure)
        check_exposed(given.host, settings)
        numbers = ports(given.port, os.environ)
        listeners = [listen(given.host, port) for port in numbers]
        log.info("listening on %s, port %s", given.host, ", ".join(map(str, numbers)))
        serve(settings, listeners)
    except StartError as error:
        sys.exit(f"bge-serverless cannot start: {error}")


if __name__ == "__main__":
    main()
