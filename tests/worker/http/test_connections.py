"""Connections that send too much, too slowly, too many requests or nothing."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest

from bge_worker.engine.engine import Engine
from bge_worker.http.server import listen
from bge_worker.http.timeouts import Timeouts
from bge_worker.settings import Settings
from fakes.engine import SOON, FakeEngine
from fakes.serving import RERANK, connected, eventually, metric, serving

RAW_PING = b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n"
Serve = Callable[..., str]


def read_to_the_end(connection: socket.socket, size: int = 65536, pause: float = 0.0) -> int:
    """Return how many bytes came before the server closed."""
    received = 0
    with suppress(ConnectionError):
        while count := len(connection.recv(size)):
            received += count
            time.sleep(pause)
    return received


def is_closed(connection: socket.socket) -> bool:
    """Read to the end. (`recv` raises TimeoutError on a connection that stays open.)"""
    read_to_the_end(connection)
    return True


def test_an_incomplete_head_times_out(serve: Serve) -> None:
    url = serve(timeouts=Timeouts(head=0.2))
    for previous in (b"", RAW_PING):
        with connected(url) as connection:
            connection.sendall(previous)
            if previous:
                assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            connection.sendall(b"GET /ping HT")
            assert connection.recv(4096) == b""


@pytest.mark.parametrize(
    "head",
    [
        b"GET /ping HTTP/1.1\r\nX: " + b"a" * 70_000,
        b"GET /ping HTTP/1.1\r\n" + b"X: " + b"a" * 40_000 + b"\r\nY: " + b"a" * 40_000 + b"\r\n",
        b"GET /" + b"a" * 70_000,
        b"GET /ping HTTP/1.1\r\n" + b"X: 1\r\n" * 102,
    ],
    ids=["unfinished field", "many bytes", "long path", "many fields"],
)
def test_a_head_too_large_is_refused(serve: Serve, head: bytes) -> None:
    with connected(serve()) as connection:
        connection.sendall(head)
        response = connection.recv(4096).decode()
        assert response.startswith("HTTP/1.1 431")
        assert "HeadTooLargeError: the request's head must have at most" in response
        assert is_closed(connection)


def test_trailers_are_ignored_and_limited(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bge_worker.http.connections.MAX_FRAMING_BYTES", 100_000)
    body = json.dumps(RERANK).encode()
    head = b"POST /rerank HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = head + b"%x\r\n%b\r\n0\r\n" % (len(body), body)
    with connected(serve()) as connection:
        connection.sendall(chunked + b"X-Trailer: a\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(chunked + b"X-Trailer: ")
        for _ in range(20):
            with suppress(ConnectionError):
                connection.sendall(b"a" * 10_000)
        assert is_closed(connection)


def test_an_idle_connection_is_closed_despite_line_ends(serve: Serve) -> None:
    with connected(serve(timeouts=Timeouts(keep_alive=0.3))) as connection:
        connection.sendall(RAW_PING)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert_closed_while_sending(connection, b"\r\n")


@pytest.mark.parametrize("request_line", ["GET /ping", "PUT /ping", "POST /cancel/x"])
def test_an_unread_body_closes_the_connection(serve: Serve, request_line: str) -> None:
    with connected(serve(timeouts=Timeouts(unread=0.3))) as connection:
        head = f"{request_line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1")
        assert_closed_while_sending(connection, b"a")


def test_pipelined_requests_are_limited(serve: Serve) -> None:
    with connected(serve()) as connection:
        connection.sendall(RAW_PING * 10)
        received = b""
        while received.count(b"HTTP/1.1 200") < 10:
            received += connection.recv(65536)
        connection.sendall(RAW_PING * 100)
        assert is_closed(connection)


def test_a_large_body_may_end_in_a_packet_with_the_next_request(serve: Serve) -> None:
    body = json.dumps({"query": "q", "documents": ["a" * 900_000, "b" * 900_000]}).encode()
    head = b"POST /rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    small = json.dumps(RERANK).encode()
    with connected(serve()) as connection:
        connection.sendall(head % len(body) + body + head % len(small) + small)
        received = b""
        while received.count(b"HTTP/1.1 ") < 2:
            received += connection.recv(65536)
        assert b"HTTP/1.1 200" in received


def test_a_malformed_request_is_not_answered_in_place_of_an_earlier_one(
    serve: Serve, engine: FakeEngine
) -> None:
    engine.gate.clear()
    with connected(serve()) as connection:
        body = json.dumps(RERANK).encode()
        head = f"POST /rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert engine.entered.acquire(timeout=SOON)
        connection.sendall(b"EHLO localhost\r\n\r\n")
        assert connection.recv(4096) == b""


def assert_closed_while_sending(connection: socket.socket, data: bytes) -> None:
    connection.settimeout(0.05)
    for _ in range(200):
        try:
            connection.sendall(data)
            if connection.recv(4096) == b"":
                return
        except TimeoutError:
            pass
        except ConnectionError:
            return
    raise AssertionError("the connection is still open")


def test_ping_is_answered_beyond_the_connection_limit(
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = serve(max_connections=20)
    with ExitStack() as stack:
        idle = [stack.enter_context(connected(url)) for _ in range(60)]
        eventually(lambda: "connections are open" in caplog.text)
        assert caplog.text.count("limit met") == 1
        assert httpx.get(f"{url}/ping").status_code == 200
        refused = httpx.post(f"{url}/rerank", json=RERANK)
        assert (refused.status_code, refused.headers["connection"]) == (429, "close")
        assert "too many connections are open" in refused.text
        assert is_closed(idle[20])  # the oldest beyond the limit
    eventually(lambda: httpx.post(f"{url}/rerank", json=RERANK).status_code == 200)


def test_one_address_gets_half_of_the_connections(serve: Serve) -> None:
    url = serve(max_connections=2)
    with connected(url):
        assert httpx.post(f"{url}/rerank", json=RERANK).status_code == 429
        other_address = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=other_address) as client:
            assert client.post(f"{url}/rerank", json=RERANK).status_code == 200


def test_malformed_requests_are_refused_and_logged_once(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    url = serve()
    for _ in range(20):
        with connected(url) as connection:
            connection.sendall(b"EHLO localhost\r\n\r\n")
            response = connection.recv(4096).decode()
            assert response.startswith("HTTP/1.1 400")
            assert "the request is not HTTP/1.1" in response
    assert len([line for line in caplog.records if line.name != "httpx"]) <= 1


def test_an_upgrade_is_answered_as_http(serve: Serve) -> None:
    """A websocket would bypass the key and the timers."""
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    assert httpx.get(f"{serve()}/ping", headers=upgrade).status_code == 200


def test_a_caller_who_stops_reading_is_disconnected(packed: Engine) -> None:
    listener = listen("127.0.0.1", 0, stalled_seconds=1)
    with serving(packed, Settings(max_reply_bytes=100_000_000), listener=listener) as url:
        body = json.dumps({"texts": ["море " * 200] * 15, "return_colbert": True}).encode()
        head = f"POST /native/embed HTTP/1.1\nHost: localhost\nContent-Length: {len(body)}"
        with socket.create_connection(listener.getsockname(), timeout=60) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
            assert connection.recv(10).startswith(b"HTTP/1.1 2")
            eventually(lambda: metric(url, "bge_texts_total") == 15)
            eventually(
                lambda: metric(url, 'bge_requests_total{route="/native/embed",status="200"}') == 1
            )
            assert read_to_the_end(connection) < 10_000_000  # of some 50 MB
        assert httpx.get(f"{url}/ping").status_code == 200


@contextmanager
def reader(texts: list[str], timeouts: Timeouts, headers: bytes = b"") -> Iterator[socket.socket]:
    """A connection with small buffers, and a request for a reply that repeats `texts`."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    settings = Settings(max_reply_bytes=100_000_000, max_request_tokens=10_000_000)
    body = json.dumps({"query": "q", "documents": texts, "return_documents": True}).encode()
    head = b"POST /rerank HTTP/1.1\r\nHost: localhost\r\n%bContent-Length: %d\r\n\r\n"
    server = serving(FakeEngine(), settings, timeouts=timeouts, listener=listener)
    with server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(SOON)
        connection.connect(listener.getsockname())
        connection.sendall(head % (headers, len(body)) + body)
        yield connection


@pytest.mark.parametrize("texts", [1, 3], ids=["in the last chunk", "in an earlier chunk"])
def test_a_caller_who_reads_too_slowly_is_disconnected(texts: int) -> None:
    with reader(["a" * 900_000] * texts, Timeouts(chunk=0.1, keep_alive=0.1)) as connection:
        assert read_to_the_end(connection, 1024, 0.005) < 500_000


def test_keep_alive_and_unread_timeouts_do_not_end_a_reply() -> None:
    timeouts = Timeouts(keep_alive=0.02, unread=0.02)
    with reader(["a" * 900_000], timeouts, b"Connection: close\r\n") as connection:
        assert read_to_the_end(connection, 16384, 0.005) > 900_000
