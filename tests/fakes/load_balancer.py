"""A stand-in of RunPod's load balancer, in front of `worker/server.py` processes.

    with LoadBalancer() as balancer, BalancedWorker(env, log) as worker:
        balancer.add(worker)
        requests.post(f"{balancer.url}/native/embed", json={"texts": ["hello"]}, headers=…)

As documented: it checks the caller's key, polls each worker's /ping (200 healthy, 204 starting,
else unhealthy), sends a request to a healthy worker, and answers `no workers available` if there is
none for a while. It refuses bodies over 30 MB, answers 502 for a worker that dies, and has neither
a queue nor retries.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from fakes.loopback import LoopbackServer
from fakes.server_process import ServerProcess, free_port

DOMAIN = ".api.runpod.ai"
KEY = "a-key-of-runpod"
MAX_BYTES = 30_000_000  # of a request, and of a response
POLL_SECONDS = 0.02
DROPPED_HEADERS = ("connection", "transfer-encoding")


class BalancedWorker(ServerProcess):
    """The server as the platform starts it: ports from the environment, callers checked by it."""

    def __init__(self, env: dict[str, str], log: Path) -> None:
        super().__init__(env, log)
        self.health_port = free_port()
        ports = {"PORT": str(self.port), "PORT_HEALTH": str(self.health_port)}
        self._env |= {"BGE_INSECURE": "1", **ports}
        self._arguments = ()


class LoadBalancer(LoopbackServer):
    """The endpoint at `url`. Its public attributes are read by tests."""

    def __init__(self, no_worker_status: int = 503) -> None:
        super().__init__(_Handler)
        self.url = f"http://some-id{DOMAIN}:{self.server_address[1]}"
        self.no_worker_status = no_worker_status
        self.hold_seconds = 0.1  # that a request waits for a worker; two minutes on the platform
        self.refused = 0  # requests without a worker
        self.abandoned = 0  # requests whose caller closed the connection
        self.statuses: Counter[int] = Counter()
        self.workers: list[BalancedWorker] = []
        self._in_flight: Counter[int] = Counter()  # by the port of the worker
        self._lock = threading.Lock()
        self._is_closed = threading.Event()

    def __enter__(self) -> Self:
        super().__enter__()
        self._poller = threading.Thread(target=self._poll)
        self._healthy: set[int] = set()
        self._poller.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_closed.set()
        self._poller.join()
        super().__exit__(*error)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the connections that callers close."""

    def add(self, worker: BalancedWorker) -> None:
        self.workers.append(worker)

    def in_flight(self, worker: BalancedWorker | None = None) -> int:
        with self._lock:
            return self._in_flight[worker.port] if worker else self._in_flight.total()

    def _poll(self) -> None:
        """Keep the set of workers that may get requests."""
        with httpx.Client(timeout=1) as client:
            while not self._is_closed.wait(POLL_SECONDS):
                for worker in list(self.workers):
                    try:
                        response = client.get(f"http://127.0.0.1:{worker.health_port}/ping")
                        is_healthy = response.status_code == 200
                    except httpx.TransportError:
                        is_healthy = False
                    with self._lock:
                        (self._healthy.add if is_healthy else self._healthy.discard)(worker.port)

    @contextmanager
    def worker(self) -> Iterator[int | None]:
        """Reserve the healthy worker with the fewest requests, or None if none appears."""
        end = time.monotonic() + self.hold_seconds
        while (port := self._reserve()) is None and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        try:
            yield port
        finally:
            with self._lock:
                if port is not None:
                    self._in_flight[port] -= 1

    def _reserve(self) -> int | None:
        with self._lock:
            port = min(self._healthy, key=lambda port: self._in_flight[port], default=None)
            if port is not None:
                self._in_flight[port] += 1
            return port

    def count(self, status: int) -> None:
        with self._lock:
            self.statuses[status] += 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: LoadBalancer

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self._reply(401, b'{"error": "unauthorized"}')
        elif length > MAX_BYTES:
            self._reply(413, b'{"error": "payload too large"}')
        else:
            with self.server.worker() as port:
                answer = self._forward(port, body)
            if answer is None:
                self.server.abandoned += 1
                self.close_connection = True
            else:
                self._reply(*answer)

    do_POST = do_GET

    def _forward(self, port: int | None, body: bytes) -> tuple[int, bytes] | None:
        """Return the status and the body of the response, or None if the caller is gone."""
        if port is None:
            self.server.refused += 1
            return self.server.no_worker_status, json.dumps(
                {"error": "no workers available"}
            ).encode()
        worker = HTTPConnection("127.0.0.1", port)
        try:
            headers = {n: v for n, v in self.headers.items() if n.lower() not in DROPPED_HEADERS}
            worker.request(self.command, self.path, body or None, headers)
            if self._is_caller_gone(worker.sock):
                return None
            response = worker.getresponse()
            content = response.read()
        except (OSError, HTTPException):
            return 502, b"<html>Bad gateway</html>"
        finally:
            worker.close()
        if len(content) > MAX_BYTES:
            return 413, b'{"error": "payload too large"}'
        return response.status, content

    def _is_caller_gone(self, worker: socket.socket) -> bool:
        """Wait for the worker's response. Returns True if the caller hangs up before it."""
        readable, _, _ = select.select([worker, self.connection], [], [])
        return worker not in readable and not self.connection.recv(1, socket.MSG_PEEK)

    def _reply(self, status: int, body: bytes) -> None:
        self.server.count(status)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def resolve_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolve the names of load-balancing endpoints to loopback, for every client here."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host or ""
        return resolve("127.0.0.1" if name.endswith(DOMAIN) else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setenv("NO_PROXY", DOMAIN)
