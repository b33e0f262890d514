"""The HTTP server's entry point: for a workstation, and for RunPod's load-balancing endpoints.

python worker/server.py                        on 127.0.0.1:8000
python worker/server.py --host 0.0.0.0         with BGE_API_KEY set
(with PORT and PORT_HEALTH, as RunPod sets)    on those ports

/ping answers from the start. The models load meanwhile, and requests wait for them.
"""

from __future__ import annotations

import gc

# Objects that imports create stay alive: collecting garbage among them costs 0.3 s of a start.
gc.disable()

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from bge_worker import __version__
from bge_worker.errors import StartError, WorkerError
from bge_worker.logs import configure_logging
from bge_worker.process import prepare_process
from bge_worker.settings import SERVER_REPLY_BYTES, Settings
from bge_worker.startup import StartTrace, missing_extra, read_ahead

try:
    from bge_worker.http.app import Application
    from bge_worker.http.connections import connection_limits
    from bge_worker.http.draining import Drain
    from bge_worker.http.metrics import Metrics
    from bge_worker.http.server import (
        StoppableServer,
        check_exposed,
        configuration,
        listen,
        read_ports,
    )
    from bge_worker.http.timeouts import Timeouts
except ModuleNotFoundError as error:
    sys.exit(missing_extra(error, "http"))

if TYPE_CHECKING:  # imports torch
    from bge_worker.serving.service import Service

CLOSE_SECONDS = 5  # for the last micro-batch, whose callers are gone
log = logging.getLogger("bge_worker.server")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Serve BGE embeddings and reranking over HTTP.",
        epilog="The BGE_… environment variables set the models, the device and the limits; "
        "docs/operations.md lists them.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", help="port to listen on ($PORT, or 8000)")
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="allow other machines to connect without BGE_API_KEY: a proxy in front checks callers",
    )
    return parser.parse_args()


def load(
    settings: Settings, metrics: Metrics, service: Future[Service], addresses: Sequence[str]
) -> None:
    """Resolve `service` with the loaded service, or with the error that prevents it."""
    trace = StartTrace(enabled=settings.trace_start)
    try:
        trace.mark("python, listening")
        read_ahead((settings.embed_model, settings.rerank_model))
        from bge_worker.engine.engine import load_engine
        from bge_worker.serving.service import Service

        trace.mark("torch imported")
        loaded = Service(load_engine(settings), settings, observe=metrics.computed)
        trace.mark("models loaded")
        asyncio.run(loaded.check())
        trace.mark("fitness check passed")
        metrics.watch(loaded)
        gc.freeze()
        gc.enable()
        models = ", ".join(model.model for model in loaded.models.values())
        log.info("ready on %s: %s", ", ".join(addresses), models)
        if settings.log_format == "text":
            print(first_request(addresses[0], loaded, settings), file=sys.stderr, flush=True)
        service.set_result(loaded)
    except BaseException as error:  # a panic of the Rust tokenizer is no Exception
        log.debug("the models were not loaded", exc_info=error)
        if not isinstance(error, StartError):
            # Messages of the fitness check and of the device may be shown; others may quote a text.
            is_quotable = isinstance(error, RuntimeError | WorkerError)
            reason = error if is_quotable else type(error).__name__
            error = StartError(f"this machine is not fit: {reason}")
        service.set_exception(error)


def first_request(address: str, service: Service, settings: Settings) -> str:
    """Return where the documentation is, and a request that can be pasted into a shell."""
    host, _, port = address.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    route, body = "/v1/embeddings", '{"input": "море"}'
    if "embed" not in service.models:
        route, body = "/v2/rerank", '{"query": "море", "documents": ["о море", "о суше"]}'
    key = ' -H "Authorization: Bearer $BGE_API_KEY"' if settings.api_key else ""
    page = f"  page           {url}/\n" if settings.page else ""
    documentation = f"  documentation  {url}/docs\n"
    return f"{page}{documentation}  try            curl {url}{route}{key} -d '{body}'"


def serve(settings: Settings, listeners: list[socket.socket]) -> None:
    """Serve until a signal. Raises StartError if the models cannot be loaded."""
    metrics = Metrics()
    service: Future[Service] = Future()
    timeouts, drain = Timeouts(), Drain()
    app = Application(settings, metrics, service, timeouts, drain=drain).asgi
    server = StoppableServer(configuration(app, connection_limits(), timeouts), service, drain)

    def stop_if_failed(loaded: Future[Service]) -> None:
        if loaded.exception() is not None:  # never reset to False: a signal may have set it
            server.should_exit = True

    service.add_done_callback(stop_if_failed)
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # uvicorn installs its own handler, and raises the signal again after its shutdown.
        if signal.getsignal(name) != signal.SIG_IGN:  # as under nohup
            signal.signal(name, server.handle_exit)
    # A daemon thread: a signal during loading must not wait for it.
    addresses = ["{}:{}".format(*listener.getsockname()) for listener in listeners]
    arguments = (settings, metrics, service, addresses)
    threading.Thread(target=load, args=arguments, daemon=True).start()
    try:
        server.run(sockets=listeners)
    finally:
        if service.done() and service.exception() is None:
            service.result().close(timeout=CLOSE_SECONDS)
    if service.done():
        service.result()  # raises the error that stopped the server


def main() -> None:
    args = parse_arguments()
    prepare_process()
    try:
        settings = Settings.from_env(os.environ, max_reply_bytes=SERVER_REPLY_BYTES)
        configure_logging(settings, os.environ)
        settings = replace(settings, insecure=settings.insecure or args.insecure)
        check_exposed(args.host, settings)
        ports = read_ports(args.port, os.environ)
        listeners = [listen(args.host, port) for port in ports]
        log.info("listening on %s, port %s", args.host, ", ".join(map(str, ports)))
        serve(settings, listeners)
    except StartError as error:
        sys.exit(f"bge-serverless cannot start: {error}")


if __name__ == "__main__":
    main()
