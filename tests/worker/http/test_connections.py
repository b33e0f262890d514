"""Connections that send too much, too slowly, too many or nothing at all."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest

from bge_worker.engine.engine import Engine
from bge_worker.http.server import listen
from bge_worker.http.timeouts import Timeouts
from bge_worker.settings import Settings
from fakes.engine import SOON, FakeEngine
from fakes.serving import connected, eventually, metric, serving

RERANK = {"query": "q", "documents": ["one", "three"]}


@pytest.fixture
def url() -> Iterator[str]:
    with impatient() as url:
        yield url


@contextmanager
def impatient(**seconds: float) -> Iterator[str]:
    """A server with timeouts of the test's own."""
    with serving(FakeEngine(), Settings(), timeouts=Timeouts(**seconds)) as url:
        yield url


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has ended it, perhaps with what it said last."""
    with suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return True


def test_half_a_head_is_not_waited_for() -> None:
    for start in (b"", b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        with impatient(head=0.2) as url, connected(url) as connection:
            connection.sendall(start)
            if start:
                assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            connection.sendall(b"GET /ping HT")
            assert connection.recv(4096) == b""


@pytest.mark.parametrize(
    "head",
    [
        b"GET /ping HTTP/1.1\r\nX: " + b"a" * 70_000,  # a field without an end
        b"GET /ping HTTP/1.1\r\n" + b"X: " + b"a" * 40_000 + b"\r\nY: " + b"a" * 40_000 + b"\r\n",
        b"GET /" + b"a" * 70_000,
        b"GET /ping HTTP/1.1\r\n" + b"X: 1\r\n" * 102,
    ],
    ids=["endless field", "many bytes", "long path", "many fields"],
)
def test_a_head_too_large_is_refused(url: str, head: bytes) -> None:
    with connected(url) as connection:
        connection.sendall(head)
        answer = connection.recv(4096).decode()
        assert answer.startswith("HTTP/1.1 431")
        assert "HeadTooLargeError: the request's head must have at most" in answer
        assert is_closed(connection)


def test_trailers_are_dropped_and_their_size_is_limited(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bge_worker.http.connections.MAX_FRAMING_BYTES", 100_000)
    body = json.dumps(RERANK).encode()
    head = b"POST /rerank HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = head + b"%x\r\n%b\r\n0\r\n" % (len(body), body)
    with connected(url) as connection:
        connection.sendall(chunked + b"X-Trailer: a\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(chunked + b"X-Trailer: ")
        for _ in range(20):
            with suppress(ConnectionError):
                connection.sendall(b"a" * 10_000)
        assert is_closed(connection)


def test_an_idle_connection_ends_whatever_dribbles_in() -> None:
    with impatient(keep_alive=0.3) as url, connected(url) as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert_ends_while_sending(connection, b"\r\n")


@pytest.mark.parametrize("request_line", ["GET /ping", "PUT /ping", "POST /cancel/x"])
def test_a_body_that_nobody_reads_ends(request_line: str) -> None:
    with impatient(unread=0.3) as url, connected(url) as connection:
        head = f"{request_line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1")
        assert_ends_while_sending(connection, b"a")


def test_requests_sent_ahead_are_limited(url: str) -> None:
    request = b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connected(url) as connection:
        connection.sendall(request * 10)
        received = b""
        while received.count(b"HTTP/1.1 200") < 10:
            received += connection.recv(65536)
        connection.sendall(request * 100)
        assert is_closed(connection)


def test_the_end_of_a_large_body_may_come_with_the_next_request(url: str) -> None:
    body = json.dumps({"query": "q", "documents": ["a" * 900_000, "b" * 900_000]}).encode()
    head = b"POST /rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    small = json.dumps(RERANK).encode()
    with connected(url) as connection:
        connection.sendall(head % len(body) + body + head % len(small) + small)
        received = b""
        while received.count(b"HTTP/1.1 ") < 2:
            received += connection.recv(65536)
        assert b"HTTP/1.1 200" in received


def test_a_bad_request_is_not_the_answer_to_the_one_before() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    with serving(engine, Settings()) as url, connected(url) as connection:
        body = json.dumps(RERANK).encode()
        head = f"POST /rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert engine.entered.acquire(timeout=SOON)
        connection.sendall(b"EHLO localhost\r\n\r\n")
        assert connection.recv(4096) == b""
        engine.gate.set()


def assert_ends_while_sending(connection: socket.socket, drop: bytes) -> None:
    connection.settimeout(0.05)
    for _ in range(200):
        try:
            connection.sendall(drop)
            if connection.recv(4096) == b"":
                return
        except TimeoutError:
            pass
        except ConnectionError:
            return
    raise AssertionError("it is still open")


def test_beyond_the_connections_there_may_be_ping_is_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(FakeEngine(), Settings(), max_connections=20) as url:
        with ExitStack() as stack:
            idle = [stack.enter_context(connected(url)) for _ in range(60)]
            eventually(lambda: "connections are open" in caplog.text)
            assert caplog.text.count("limit met") == 1
            assert httpx.get(f"{url}/ping").status_code == 200
            refused = httpx.post(f"{url}/rerank", json=RERANK)
            assert (refused.status_code, refused.headers["connection"]) == (429, "close")
            assert "too many connections are open" in refused.text
            assert is_closed(idle[20])  # of those beyond the limit the oldest gave way
        eventually(lambda: httpx.post(f"{url}/rerank", json=RERANK).status_code == 200)


def test_one_address_does_not_take_all_connections() -> None:
    with serving(FakeEngine(), Settings(), max_connections=2) as url, connected(url):
        assert httpx.post(f"{url}/rerank", json=RERANK).status_code == 429
        other = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=other) as client:
            assert client.post(f"{url}/rerank", json=RERANK).status_code == 200


def test_what_is_no_http_is_told_so_and_fills_no_log(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        with connected(url) as connection:
            connection.sendall(b"EHLO localhost\r\n\r\n")
            answer = connection.recv(4096).decode()
            assert answer.startswith("HTTP/1.1 400")
            assert "the request is not HTTP/1.1" in answer
    assert len([line for line in caplog.records if line.name != "httpx"]) <= 1


def test_an_upgrade_to_another_protocol_is_answered_as_http(url: str) -> None:
    """WebSocket's connections would pass neither the key nor the timers."""
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    assert httpx.get(f"{url}/ping", headers=upgrade).status_code == 200


def read_to_the_end(connection: socket.socket) -> int:
    """How many bytes still came before the server's end was closed."""
    received = 0
    with suppress(ConnectionError):
        while chunk := connection.recv(65536):
            received += len(chunk)
    return received


def test_a_caller_who_stops_reading_is_dropped(packed: Engine) -> None:
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
    """A caller of /rerank with small buffers for the reply, which repeats the texts."""
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


def read_slowly(connection: socket.socket, size: int) -> int:
    """How many bytes came before the server's end was closed."""
    received = 0
    with suppress(ConnectionError):
        while read := len(connection.recv(size)):
            received += read
            time.sleep(0.005)
    return received


@pytest.mark.parametrize("texts", [1, 3], ids=["in the last chunk", "in an earlier chunk"])
def test_a_caller_who_reads_too_slowly_is_dropped(texts: int) -> None:
    with reader(["a" * 900_000] * texts, Timeouts(chunk=0.1, keep_alive=0.1)) as connection:
        assert read_slowly(connection, 1024) < 500_000


def test_a_last_reply_may_take_a_while() -> None:
    timeouts = Timeouts(keep_alive=0.02, unread=0.02)
    with reader(["a" * 900_000], timeouts, b"Connection: close\r\n") as connection:
        assert read_slowly(connection, 16384) > 900_000
