"""The checks before a route, the limits in flight, and the access log."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from bge_worker.http.middleware import MAX_BODY_BYTES, MAX_RUN_BYTES, MAX_RUNSYNC_BYTES
from bge_worker.http.timeouts import Timeouts
from bge_worker.logs import JsonFormatter, TextFormatter, fields_of
from bge_worker.settings import Settings
from fakes.engine import SOON, FakeEngine
from fakes.serving import RERANK, connected, eventually, metric, serving


def test_the_key_is_required_except_for_ping_and_health(serve: Callable[..., str]) -> None:
    url = serve(api_key="s3cret-key")
    right = {"Authorization": "Bearer s3cret-key"}
    assert httpx.get(f"{url}/ping").status_code == 200
    assert httpx.get(f"{url}/health").status_code == 200
    assert httpx.post(f"{url}/ping", content=b"a body").status_code == 401
    for route in ("/metrics", "/v1/models", "/status/x", "/v2/e/health"):
        assert httpx.get(url + route).status_code == 401
        assert httpx.get(url + route, headers=right).status_code != 401
    for scheme in ("bearer", "BEARER", "Bearer "):
        spelled = {"Authorization": f"{scheme} s3cret-key"}
        assert httpx.get(f"{url}/v1/models", headers=spelled).status_code == 200
    for wrong in ({}, {"Authorization": "s3cret-key"}, {"Authorization": "Bearer s3cret-keys"}):
        refused = httpx.post(f"{url}/native/rerank", json=RERANK, headers=wrong)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert "s3cret" not in refused.text
    assert httpx.post(f"{url}/native/rerank", json=RERANK, headers=right).status_code == 200
    assert "s3cret" not in httpx.get(f"{url}/openapi.json", headers=right).text


def exchange(url: str, head: str, body: bytes = b"") -> str:
    """Return the response to raw bytes; the connection stays open on this side."""
    with connected(url) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        return connection.recv(65536).decode()


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/run", MAX_RUN_BYTES),
        ("/v2/x/runsync", MAX_RUNSYNC_BYTES),
        ("/native/rerank", MAX_BODY_BYTES),
    ],
)
def test_a_body_too_large_is_refused_before_it_is_read(
    path: str, limit: int, serve: Callable[..., str]
) -> None:
    head = f"POST {path} HTTP/1.1\nHost: localhost\nContent-Length: {limit + 1}"
    response = exchange(serve(), head)
    assert response.startswith("HTTP/1.1 413")
    assert f"at most {limit} bytes. Given: {limit + 1} or more" in response


def test_a_body_without_content_length_is_limited(serve: Callable[..., str]) -> None:
    chunks = (b" " * 1_000_000 for _ in range(MAX_RUN_BYTES // 1_000_000 + 2))
    reply = httpx.post(f"{serve()}/run", content=chunks)
    assert reply.status_code == 413


def test_an_incomplete_body_times_out(serve: Callable[..., str]) -> None:
    url = serve(timeouts=Timeouts(body=0.2))
    head = "POST /native/rerank HTTP/1.1\nHost: localhost\nContent-Length: 100"
    response = exchange(url, head, b'{"query": "so')
    assert response.startswith("HTTP/1.1 408")
    assert "within 0.2 seconds. Given: 13 bytes" in response


def test_requests_beyond_the_queue_limit_are_refused(
    serve: Callable[..., str], engine: FakeEngine
) -> None:
    url = serve(max_queue=3)
    engine.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        in_flight = [pool.submit(httpx.post, f"{url}/rerank", json=RERANK) for _ in range(3)]
        eventually(lambda: metric(url, "bge_queue_depth") == 3)
        refused = httpx.post(f"{url}/v2/rerank", json=RERANK, timeout=SOON)
        assert refused.status_code == 429
        assert httpx.post(f"{url}/cancel/x").status_code == 404  # takes no slot
        assert refused.headers["retry-after"] == "1"
        assert "OverloadedError: 3 requests are in flight" in refused.json()["message"]
        engine.gate.set()
        assert [future.result().status_code for future in in_flight] == [200] * 3
    assert httpx.post(f"{url}/rerank", json=RERANK).status_code == 200


def test_a_caller_who_disconnects_frees_the_slot(
    serve: Callable[..., str], engine: FakeEngine
) -> None:
    url = serve()
    engine.gate.clear()
    for route, body in (("/rerank", RERANK), ("/runsync", {"input": RERANK})):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + route, json=body, timeout=0.2)
    eventually(lambda: metric(url, "bge_queue_depth") == 0)
    assert httpx.get(f"{url}/health").json()["jobs"]["inProgress"] == 0
    assert metric(url, 'bge_requests_total{route="/rerank",status="499"}') == 1


def test_requests_unfinished_at_the_end_of_the_grace_period_are_refused(engine: FakeEngine) -> None:
    with ThreadPoolExecutor(1) as pool:
        with serving(engine, Settings()) as url:
            engine.gate.clear()
            unfinished = pool.submit(httpx.post, f"{url}/rerank", json=RERANK, timeout=SOON)
            eventually(lambda: metric(url, "bge_queue_depth") == 1)
            unfinished.add_done_callback(lambda _: engine.gate.set())
        assert unfinished.result().status_code == 503
        assert "this worker is stopping" in unfinished.result().json()["error"]


def test_without_a_key_only_loopback_host_names_are_accepted(
    url: str, serve: Callable[..., str]
) -> None:
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
        assert httpx.get(f"{url}/v1/models", headers={"Host": host}).status_code == 200
    for host in ("other.example", "other.example:8000", "[::1", "127.0.0.1.other.example"):
        refused = httpx.get(f"{url}/v1/models", headers={"Host": host})
        assert (refused.status_code, "`Host` must be" in refused.text) == (403, True)
    behind_a_proxy = serve(insecure=True)
    assert httpx.get(f"{behind_a_proxy}/v1/models", headers={"Host": "x.example"}).is_success


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://other.example"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://other.example"},
        {"Origin": "null"},
    ],
)
def test_a_cross_site_request_is_refused_without_the_key(
    url: str, headers: dict[str, str], serve: Callable[..., str]
) -> None:
    assert httpx.post(f"{url}/rerank", json=RERANK, headers=headers).status_code == 403
    with_key = serve(api_key="s3cret-key")
    key = {"Authorization": "Bearer s3cret-key"}
    assert httpx.post(f"{with_key}/rerank", json=RERANK, headers=headers | key).is_success
    own = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
    assert httpx.post(f"{url}/rerank", json=RERANK, headers=own).status_code == 200
    assert httpx.post(f"{url}/rerank", json=RERANK, headers={"Origin": url}).status_code == 200


def test_the_access_log_has_one_line_per_request_and_no_text(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Uvicorn's access log holds paths and queries.
    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "handlers", [caplog.handler])
    httpx.get(f"{url}/ping")  # so that the previous test's line has been written
    with caplog.at_level(logging.INFO):
        httpx.post(f"{url}/embed", json={"inputs": "секретный текст"})
        httpx.post(f"{url}/embed", json={"inputs": "", "секрет": 1})
        httpx.get(f"{url}/sekret?sekret=1")
        httpx.get(f"{url}/status/sekret")
        httpx.get(f"{url}/ping")
    lines = [fields_of(r) for r in caplog.records if r.name == "bge_worker.access"]
    assert [(line["route"], line["status"]) for line in lines] == [
        *(("/embed", 200), ("/embed", 422), ("unknown", 404), ("/status/{job_id}", 404))
    ]
    assert lines[0].keys() == {"id", "method", "route", "status", "ms", "received", "sent"}
    formats = (TextFormatter(), JsonFormatter())
    messages = [
        f.format(r) for f in formats for r in caplog.records if not r.name.startswith("httpx")
    ]
    assert not re.search("секрет|sekret", " ".join(messages))


def test_pages_of_allowed_origins_may_call_the_server(serve: Callable[..., str]) -> None:
    url = serve(cors_origins=("https://app.example",))
    headers = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    preflight = headers | {"Access-Control-Request-Method": "POST"}
    assert httpx.options(f"{url}/rerank", headers=preflight).status_code == 200
    reply = httpx.post(f"{url}/rerank", json=RERANK, headers=headers)
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == "https://app.example"
    foreign = {"Origin": "https://other.example"}
    assert httpx.post(f"{url}/rerank", json=RERANK, headers=foreign).status_code == 403
