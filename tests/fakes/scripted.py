"""A fake endpoint that follows a script of actions for each route.

    endpoint.on("POST /runsync", reset, status(429), completed)

resets the connection of the first request, answers the second with 429, and all later ones with
the output of a fake worker. Its vectors depend on the text alone.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np

from fakes.loopback import LoopbackServer

WIDTH = 8
END = b"\r\n\r\n{}"  # of a head, and a body
Action = Callable[["Exchange"], object]


def vector_of(text: str) -> np.ndarray[Any, Any]:
    """Return a unit vector, float32 [WIDTH], different for each text."""
    digest = hashlib.sha256(text.encode()).digest()[:WIDTH]
    vector = np.frombuffer(digest, np.uint8).astype(np.float32) + 1
    return vector / np.linalg.norm(vector)


def output_of(payload: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a worker's reply. The score of a document is its length."""
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    reply = {"model": "m", "fingerprint": "f", "usage": usage, "truncated": []}
    if "info" in payload:
        return {"limits": {"max_texts": 2048}} | changes
    if "query" in payload:
        scores = [(index, float(len(text))) for index, text in enumerate(payload["documents"])]
        scores.sort(key=lambda scored: -scored[1])
        results = [{"index": index, "relevance_score": score} for index, score in scores]
        return reply | {"model": "r", "fingerprint": "r", "results": results} | changes
    vectors = [base64.b64encode(vector_of(t).tobytes()).decode() for t in payload["texts"]]
    return reply | {"embeddings": vectors, "dimensions": WIDTH} | changes


@dataclass(frozen=True)
class Exchange:
    """A request, and the handler to answer it with."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    handler: BaseHTTPRequestHandler

    @property
    def payload(self) -> dict[str, Any]:
        return dict(self.body["input"])

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.handler.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.handler.send_header(name, value)
        self.handler.end_headers()
        self.handler.wfile.write(body)


# --------------------------------------------------------------------------------- actions


def status(code: int, body_json: object = None, **headers: str) -> Action:
    body = json.dumps(body_json or {"error": "from the platform"}).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda exchange: exchange.reply(code, body, named)


def raw(body: bytes, code: int = 200) -> Action:
    return lambda exchange: exchange.reply(code, body)


def job(state: str, **fields: Any) -> Action:
    return status(200, {"id": "job-1", "status": state} | fields)


def failed(error: Any) -> Action:
    return job("FAILED", error=error)


def completed(exchange: Exchange) -> None:
    """Answer with the output of the payload."""
    job("COMPLETED", output=output_of(exchange.payload))(exchange)


def completed_with(**changes: Any) -> Action:
    return lambda exchange: job("COMPLETED", output=output_of(exchange.payload, **changes))(
        exchange
    )


def completed_for(payload: dict[str, Any]) -> Action:
    """Answer a poll with the output of the payload: a poll has none of its own."""
    return job("COMPLETED", output=output_of(payload))


def reset(exchange: Exchange) -> None:
    linger = struct.pack("ii", 1, 0)
    exchange.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    os.close(exchange.handler.connection.detach())  # even if another object holds it


def half_body(exchange: Exchange) -> None:
    body = json.dumps({"id": "job-1", "status": "COMPLETED", "output": {}}).encode()
    exchange.reply(200, body[: len(body) // 2], {"Content-Length": str(len(body))})
    exchange.handler.close_connection = True


def half_head(exchange: Exchange) -> None:
    exchange.handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    exchange.handler.close_connection = True


def malformed_head(header: bytes) -> Action:
    """Return an action that answers with this header, and leaves the connection open."""
    return lambda exchange: exchange.handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + header + END)


def silence(exchange: Exchange) -> None:
    """Send nothing until the client disconnects."""
    exchange.handler.connection.recv(1)


def slow_headers(exchange: Exchange) -> None:
    """Send an endless head, one line at a time."""
    try:
        exchange.handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(1000):
            exchange.handler.wfile.write(f"X-{number}: x\r\n".encode())
            time.sleep(0.02)
    except OSError:
        pass  # expected: the client disconnects


def slow_body(exchange: Exchange) -> None:
    """Send an endless body, one byte at a time."""
    try:
        exchange.reply(200, b"{", {"Content-Length": "100000"})
        for _ in range(1000):
            exchange.handler.wfile.write(b" ")
            time.sleep(0.02)
    except OSError:
        pass  # expected: the client disconnects


def gzipped(exchange: Exchange) -> None:
    """Answer like `completed`, compressed, with a cookie."""
    body = {"id": "job-1", "status": "COMPLETED", "output": output_of(exchange.payload)}
    compressed(json.dumps(body).encode(), {"Set-Cookie": "session=1; Path=/"})(exchange)


def compressed(body: bytes, headers: dict[str, str] | None = None) -> Action:
    encoding = {"Content-Encoding": "gzip"}
    return lambda exchange: exchange.reply(200, gzip.compress(body), encoding | (headers or {}))


# --------------------------------------------------------------------------------- server


class Scripted(LoopbackServer):
    """The endpoint. `seen` holds its requests in order."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.seen: list[Exchange] = []
        self.url = f"{self.base}/v2/some-id"
        self._script: dict[str, list[Action]] = {}
        self._lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore connections that an action or the client has closed."""

    def on(self, route: str, *actions: Action) -> None:
        """Set the actions for "METHOD /path", or "METHOD /path/*". The last one repeats."""
        self._script[route] = list(actions)

    def routes(self) -> list[str]:
        """Return the routes requested so far, in order."""
        return [f"{exchange.method} {exchange.path}" for exchange in self.seen]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(length) or b"null")
        path = handler.path.removeprefix("/v2/some-id").split("?")[0]
        exchange = Exchange(handler.command, path, dict(handler.headers), body, handler)
        with self._lock:
            self.seen.append(exchange)
            route = f"{handler.command} {path}"
            wildcard = route.rpartition("/")[0] + "/*"
            actions = self._script.get(route) or self._script.get(wildcard) or [status(404)]
            action = actions.pop(0) if len(actions) > 1 else actions[0]
        action(exchange)


class Queue:
    """Leaves every job in the queue, each under its own id.

    That with `completed_text` is completed once another one is in the queue.
    """

    def __init__(self, endpoint: Scripted, completed_text: str = "") -> None:
        self.submitted: set[str] = set()
        self._endpoint = endpoint
        self._completed_text = completed_text
        endpoint.on("POST /runsync", self.submit)
        endpoint.on("GET /status/*", lambda exchange: self._reply(exchange, exchange.path))
        endpoint.on("POST /cancel/*", lambda exchange: self._reply(exchange, exchange.path))

    @property
    def polled(self) -> set[str]:
        return self._ids("/status/")

    @property
    def cancelled(self) -> set[str]:
        return self._ids("/cancel/")

    def _ids(self, route: str) -> set[str]:
        paths = [exchange.path for exchange in self._endpoint.seen]
        return {path.removeprefix(route) for path in paths if path.startswith(route)}

    def submit(self, exchange: Exchange) -> None:
        texts = exchange.payload.get("texts")
        if texts is None or self._completed_text in texts:
            while texts and not self.submitted:
                time.sleep(0.01)
            completed(exchange)
            return
        job_id = f"job-{id(exchange)}"
        self.submitted.add(job_id)
        self._reply(exchange, job_id)

    def _reply(self, exchange: Exchange, path: str) -> None:
        body = {"id": path.rpartition("/")[2], "status": "IN_QUEUE"}
        exchange.reply(200, json.dumps(body).encode())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each response, in two writes, takes 40 ms
    server: Scripted

    def do_GET(self) -> None:
        self.server.answer(self)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


# ------------------------------------------------------------------------------ Jina's API


def jina_embeddings(exchange: Exchange) -> None:
    """Answer with the negative vectors of a worker's, last first."""
    texts = exchange.body["input"]
    data = [
        {"object": "embedding", "index": index, "embedding": (-vector_of(text)).tolist()}
        for index, text in enumerate(texts)
    ]
    usage = {"total_tokens": 3, "prompt_tokens": 3}
    body = {"model": "jina-embeddings-v3", "object": "list", "usage": usage}
    status(200, body | {"data": data[::-1]})(exchange)


def jina_rerank(exchange: Exchange) -> None:
    """Answer with a ranking of two documents."""
    results = [{"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.1}]
    status(200, {"model": "m", "usage": {"total_tokens": 5}, "results": results})(exchange)
