"""The HTTP server: each route's shape and errors, the limits, the jobs, the metrics, the log."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Timer
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as conformance

from bge_worker.engine.engine import Engine
from bge_worker.errors import StartError
from bge_worker.http import jobs
from bge_worker.http.app import ROUTES, Server
from bge_worker.http.json_codec import to_json
from bge_worker.http.memory import HeldBytes
from bge_worker.http.metrics import Metrics
from bge_worker.http.middleware import MAX_BODY_BYTES, MAX_RUN_BYTES, MAX_RUNSYNC_BYTES
from bge_worker.http.routes.route import Route
from bge_worker.http.timeouts import Timeouts
from bge_worker.settings import Settings
from fakes.engine import SOON, FakeEngine
from fakes.serving import connected, eventually, listening, metric, serving

TEXTS = ["Градиентный спуск ищет минимум функции.", "A transaction is all or nothing."]
RERANK = {"query": "q", "documents": ["one", "three"]}
"""On the fake engine a document's logit is its length."""
CONFORMS = [
    not_a_server_error,
    conformance.status_code_conformance,
    conformance.content_type_conformance,
    conformance.response_schema_conformance,
]


@pytest.fixture(scope="module")
def url(packed: Engine) -> Iterator[str]:
    with serving(packed, Settings()) as url:
        yield url


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    engine = FakeEngine()
    yield engine
    engine.gate.set()


@pytest.fixture
def serve(engine: FakeEngine) -> Iterator[Callable[..., str]]:
    """A server around the fake engine, with settings of the test's own."""
    open_servers = []

    def start(**options: Any) -> str:
        names = ("timeouts", "listener", "max_connections", "held")
        extra = {name: options.pop(name) for name in names & options.keys()}
        server = serving(engine, Settings(**options), **extra)
        open_servers.append(server)
        return server.__enter__()

    yield start
    engine.gate.set()
    for server in open_servers:
        server.__exit__(None, None, None)


# ----------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.body.__name__)
def test_the_examples_in_openapi_are_answered(route: Route, url: str) -> None:
    schemas = httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]
    fields = schemas[route.body.__name__]["properties"].items()
    body = {name: field["examples"][0] for name, field in fields if "examples" in field}
    assert httpx.post(url + route.paths[-1], json=body).status_code == 200


def test_text_embeddings_inference_s_shapes(url: str) -> None:
    native = httpx.post(f"{url}/native/embed", json={"texts": TEXTS, "return_sparse": True}).json()
    dense = httpx.post(f"{url}/embed", json={"inputs": TEXTS}).json()
    np.testing.assert_allclose(dense, native["embeddings"], atol=1e-6)
    sparse = httpx.post(f"{url}/embed_sparse", json={"inputs": TEXTS}).json()
    assert [{v["index"]: v["value"] for v in vector} for vector in sparse] == [
        dict(zip(v["indices"], v["values"], strict=True)) for v in native["sparse_embeddings"]
    ]
    ranked = httpx.post(
        f"{url}/rerank", json={"query": "минимум", "texts": TEXTS, "return_text": True}
    ).json()
    assert [(r["index"], r["text"]) for r in ranked] == [(0, TEXTS[0]), (1, TEXTS[1])]
    assert ranked[0]["score"] > ranked[1]["score"]


@pytest.mark.parametrize(
    ("route", "body", "sentence"),
    [
        ("/embed", {"inputs": TEXTS, "normalize": False}, "`normalize` must be true"),
        ("/embed", {"inputs": "море " * 9000}, "`inputs[0]` has 27002 tokens"),
        ("/embed", {"inputs": "a" * 1_000_001}, "`inputs` must have at most 1000000 characters"),
        ("/embed", {"inputs": [5] * 9000}, "`inputs` must hold strings. Given: token ids"),
        ("/embed", {"inputs": "a", "truncation_direction": "Left"}, "must be right"),
        ("/embed", {"inputs": "a", "dimensions": 7}, "`dimensions` must be 512"),
        ("/embed", [], "`body` must be an object. Given: a list"),
        ("/rerank", {"query": "q", "texts": []}, "`texts` must not be empty"),
        ("/v1/rerank", {"documents": ["a"]}, "`query` is required"),
        ("/v2/rerank", RERANK | {"model": "rerank-v3.5"}, "`model` must be `miniature/bge-rer"),
        ("/native/embed", {"query": "q", "documents": ["a"]}, "unknown field `query`, `documents`"),
        ("/native/rerank", {"texts": ["a"]}, "unknown field `texts`. Known here: `query`"),
        ("/run", {"input": 1, "policy": 1}, "`policy` must be an object"),
        ("/run", {"input": 1, "webhook": "https://x"}, "`webhook` is not called by this server"),
        ("/run", {"input": 1, "policy": {"ttl": 0}}, "`policy.ttl` must be from 1 to 604800000"),
        ("/runsync?wait=7", {"input": 1}, "`wait` must be an integer, from 1000 to 300000"),
        ("/nowhere", {}, "no such route"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_told_what_is_wrong(
    route: str, body: Any, sentence: str, url: str
) -> None:
    reply = httpx.post(url + route, json=body)
    assert reply.status_code in (404, 422)
    assert sentence in reply.json()["error"]


def test_a_body_that_is_no_strict_json_is_refused(url: str) -> None:
    for body in (b"", b"sea", b'{"texts": NaN}', b'{"texts": "\\ud800"}', b'{"texts": ["a"}'):
        reply = httpx.post(f"{url}/native/embed", content=body)
        assert reply.status_code == 422
        assert reply.json()["error"].startswith("ValidationError: the body is not JSON")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda items: st.lists(items) | st.dictionaries(st.text(), items),
    )
)  # fmt: skip
def test_a_reply_s_json_is_python_s_own(value: Any) -> None:
    # Whatever mixes lists and scalars: the encoder goes into a list by its first item.
    if isinstance(value, list) and value and isinstance(value[0], list | dict):
        value = [item for item in value if isinstance(item, list | dict)]
    assert json.loads(to_json(value)) == value


# ----------------------------------------------------------------------- schemathesis


def test_the_server_keeps_to_its_own_openapi(url: str, request: pytest.FixtureRequest) -> None:
    """No 5xx, no undocumented status or content type, every body as its schema says."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    examples = 500 if request.config.getoption("--long") else 30
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {"/run", "/rerank", "/embed"} < {operation.path for operation in operations}
    job = post(url, "/run")["id"]
    for operation in operations:
        fuzz(operation, examples, job)


def fuzz(operation: schemathesis.APIOperation, examples: int, job: str) -> None:
    """Random strings for a model's name and a job's id would only ever be refused."""
    model = "miniature/" + ("bge-reranker-v2-m3" if "rerank" in operation.path else "bge-m3")
    quiet = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )

    @quiet
    @given(case=operation.as_strategy())
    def conforms(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = model
        if "job_id" in case.path_parameters:
            case.path_parameters["job_id"] = job
        case.call_and_validate(checks=CONFORMS, timeout=30)

    conforms()


# ---------------------------------------------------------------------- limits and refusals


def test_every_route_but_two_wants_the_key(serve: Callable[..., str]) -> None:
    url = serve(api_key="s3cret-key")
    right = {"Authorization": "Bearer s3cret-key"}
    assert httpx.get(f"{url}/ping").status_code == 200
    assert httpx.get(f"{url}/health").status_code == 200
    for route in ("/metrics", "/openapi.json", "/docs", "/v1/models", "/status/x", "/v2/e/health"):
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
    """What the server says to raw bytes; the connection stays open on our side."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=SOON) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        return connection.recv(65536).decode()


@pytest.mark.parametrize(
    ("route", "most"),
    [
        ("/run", MAX_RUN_BYTES),
        ("/v2/x/runsync", MAX_RUNSYNC_BYTES),
        ("/native/rerank", MAX_BODY_BYTES),
    ],
)
def test_a_body_too_large_is_refused_before_it_is_read(
    route: str, most: int, serve: Callable[..., str]
) -> None:
    head = f"POST {route} HTTP/1.1\nHost: localhost\nContent-Length: {most + 1}"
    answer = exchange(serve(), head)
    assert answer.startswith("HTTP/1.1 413")
    assert f"the body must be at most {most} bytes. Given: {most + 1} or more" in answer


def test_a_body_that_does_not_say_its_size_is_cut_off(serve: Callable[..., str]) -> None:
    chunks = (b" " * 1_000_000 for _ in range(MAX_RUN_BYTES // 1_000_000 + 2))
    reply = httpx.post(f"{serve()}/run", content=chunks)
    assert reply.status_code == 413


def test_half_a_body_is_not_waited_for(serve: Callable[..., str]) -> None:
    url = serve(timeouts=Timeouts(body=0.2))
    head = "POST /native/rerank HTTP/1.1\nHost: localhost\nContent-Length: 100"
    answer = exchange(url, head, b'{"query": "so')
    assert answer.startswith("HTTP/1.1 408")
    assert "the body must arrive within 0.2 seconds. Given: 13 bytes" in answer


def test_beyond_the_queue_limit_requests_are_refused_at_once(
    serve: Callable[..., str], engine: FakeEngine
) -> None:
    url = serve(max_queue=3)
    engine.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        inside = [pool.submit(httpx.post, f"{url}/rerank", json=RERANK) for _ in range(3)]
        eventually(lambda: metric(url, "bge_queue_depth") == 3)
        refused = httpx.post(f"{url}/v2/rerank", json=RERANK, timeout=SOON)
        assert refused.status_code == 429
        assert httpx.post(f"{url}/cancel/x").status_code == 404  # cancelling takes no place
        assert refused.headers["retry-after"] == "1"
        assert "OverloadedError: 3 requests are in flight" in refused.json()["message"]
        engine.gate.set()
        assert [future.result().status_code for future in inside] == [200] * 3
    assert httpx.post(f"{url}/rerank", json=RERANK).status_code == 200


def test_a_caller_who_hangs_up_frees_the_place(
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


def test_what_is_in_flight_when_the_grace_is_over_is_told_so(engine: FakeEngine) -> None:
    with ThreadPoolExecutor(1) as pool:
        with serving(engine, Settings()) as url:
            engine.gate.clear()
            late = pool.submit(httpx.post, f"{url}/rerank", json=RERANK, timeout=SOON)
            eventually(lambda: metric(url, "bge_queue_depth") == 1)
            Timer(4, engine.gate.set).start()  # long after the grace, of one second
        assert late.result().status_code == 429
        assert "this worker is stopping" in late.result().json()["error"]


def test_a_server_whose_models_cannot_be_loaded_says_so() -> None:
    models: Future[Any] = Future()
    models.set_exception(StartError("no such folder"))
    app = Server(Settings(), Metrics(), models).asgi
    with listening(app, socket.create_server(("127.0.0.1", 0))) as url:
        assert httpx.get(f"{url}/ping").status_code == 503
        assert httpx.get(f"{url}/health").json()["workers"]["unhealthy"] == 1
        refused = httpx.post(f"{url}/v1/embeddings", json={"input": "a", "model": "b"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "InferenceError")


def test_only_this_machine_s_names_lead_to_a_server_without_a_key(
    url: str, serve: Callable[..., str]
) -> None:
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
        assert httpx.get(f"{url}/v1/models", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "evil.example:8000", "[::1", "127.0.0.1.evil.example"):
        refused = httpx.get(f"{url}/v1/models", headers={"Host": host})
        assert (refused.status_code, "`Host` must be" in refused.text) == (403, True)
    behind_a_proxy = serve(insecure=True)
    assert httpx.get(f"{behind_a_proxy}/v1/models", headers={"Host": "x.example"}).is_success


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
def test_a_page_of_another_site_is_refused_unless_it_has_the_key(
    url: str, headers: dict[str, str], serve: Callable[..., str]
) -> None:
    assert httpx.post(f"{url}/rerank", json=RERANK, headers=headers).status_code == 403
    with_key = serve(api_key="s3cret-key")
    key = {"Authorization": "Bearer s3cret-key"}
    assert httpx.post(f"{with_key}/rerank", json=RERANK, headers=headers | key).is_success
    own = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
    assert httpx.post(f"{url}/rerank", json=RERANK, headers=own).status_code == 200
    assert httpx.post(f"{url}/rerank", json=RERANK, headers={"Origin": url}).status_code == 200


# ------------------------------------------------------------------------- RunPod's own API


def post(url: str, route: str, **policy: int) -> dict[str, Any]:
    return dict(httpx.post(url + route, json={"input": RERANK, "policy": policy}).json())


def state(url: str, job: dict[str, Any]) -> dict[str, Any]:
    return dict(httpx.get(f"{url}/status/{job['id']}").json())


def test_a_job_goes_through_the_platform_s_states(
    serve: Callable[..., str], engine: FakeEngine
) -> None:
    url = serve(concurrency=3)
    engine.gate.clear()
    running = [post(url, "/run") for _ in range(3)]
    waiting = post(url, "/v2/some-id/run")
    assert waiting["status"] == "IN_QUEUE"
    assert [state(url, job)["status"] for job in running] == ["IN_PROGRESS"] * 3
    counts = httpx.get(f"{url}/health").json()["jobs"]
    assert (counts["inProgress"], counts["inQueue"], counts["completed"]) == (3, 1, 0)
    early = post(url, "/runsync?wait=1000")
    assert early["status"] == "IN_QUEUE"
    assert httpx.post(f"{url}/cancel/{early['id']}").json()["status"] == "CANCELLED"
    engine.gate.set()
    eventually(lambda: state(url, waiting)["status"] == "COMPLETED")
    done = state(url, waiting)
    assert done["output"]["results"][0]["index"] == 1  # "three" is longer than "one"
    assert done.keys() == {"id", "status", "output", "delayTime", "executionTime", "workerId"}
    assert state(url, early)["status"] == "CANCELLED"
    assert post(url, "/runsync")["status"] == "COMPLETED"


def test_a_job_that_takes_too_long_times_out(serve: Callable[..., str], engine: FakeEngine) -> None:
    url = serve(concurrency=3)
    engine.gate.clear()
    for limit in ("executionTimeout", "ttl"):
        over = post(url, "/runsync", **{limit: 100})
        assert over["status"] == "TIMED_OUT"
        assert over["error"] == f"TimeoutError: `policy.{limit}` of 100 ms is over"
    eventually(lambda: metric(url, "bge_queue_depth") == 0)


def test_a_result_is_kept_for_a_while(
    serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(timeouts=Timeouts(runsync_result=0.2))
    done, other = post(url, "/runsync"), post(url, "/run")
    assert state(url, done)["status"] == "COMPLETED"
    eventually(lambda: state(url, done).get("error", "").endswith("is no longer kept"))
    assert state(url, other)["status"] == "COMPLETED"
    monkeypatch.setattr(jobs, "MAX_RESULT_BYTES", 1)
    newest = post(url, "/runsync")
    assert "error" in state(url, other)
    assert state(url, newest)["status"] == "COMPLETED"


def test_jobs_beyond_the_queue_limit_are_refused(
    serve: Callable[..., str], engine: FakeEngine
) -> None:
    url = serve(max_queue=2)
    engine.gate.clear()
    post(url, "/run")
    post(url, "/run")
    refused = httpx.post(f"{url}/run", json={"input": RERANK})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")


def test_the_bodies_of_waiting_jobs_count_until_they_have_run(
    serve: Callable[..., str], engine: FakeEngine
) -> None:
    held = HeldBytes(limit=1_300_000)
    url = serve(held=held, concurrency=3)
    engine.gate.clear()
    large = {"input": {"query": "q", "documents": ["a" * 300_000]}}
    waiting = [httpx.post(f"{url}/run", json=large).json() for _ in range(3)]
    refused = httpx.post(f"{url}/run", json=large)
    assert refused.status_code == 429
    assert "bytes of requests and replies are held, of 1300000" in refused.text
    engine.gate.set()
    eventually(lambda: {state(url, job)["status"] for job in waiting} == {"COMPLETED"})
    eventually(lambda: held.held == 0)
    assert httpx.post(f"{url}/run", json=large).status_code == 200


def test_answers_count_until_they_are_sent(packed: Engine) -> None:
    held = HeldBytes(limit=50_000_000)
    settings = Settings(max_reply_bytes=100_000_000)
    with serving(packed, settings, held=held) as url:
        body = {"input": {"texts": ["море " * 200] * 10, "return_colbert": True}}
        job = httpx.post(f"{url}/runsync", json=body, timeout=60).json()  # some 35 MB
        with connected(url) as unread:
            unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            unread.sendall(f"GET /status/{job['id']} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            eventually(lambda: held.held > 25_000_000)
            assert httpx.get(f"{url}/status/{job['id']}").status_code == 429
            assert httpx.get(f"{url}/ping").status_code == 200
        eventually(lambda: held.held == 0)
        assert httpx.get(f"{url}/status/{job['id']}").status_code == 200


def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(url: str) -> None:
    for body in (b"[" + b"[]," * 2_000_000 + b"[]]", b"[" * 100_000):
        for route in ("/native/embed", "/run"):
            reply = httpx.post(url + route, content=body)
            assert reply.status_code == 422
            assert "must hold at most" in reply.text or "levels deep" in reply.text


# -------------------------------------------------------------------------- metrics and log


def test_metrics_add_up(packed: Engine) -> None:
    with serving(packed, Settings()) as url:
        for _ in range(3):
            httpx.post(f"{url}/native/embed", json={"texts": TEXTS, "max_length": 5})
        httpx.post(f"{url}/native/embed", json={"texts": []})
        tokens = 3 * 2 * 5
        assert metric(url, 'bge_requests_total{route="/native/embed",status="200"}') == 3
        assert metric(url, 'bge_requests_total{route="/native/embed",status="422"}') == 1
        assert metric(url, "bge_texts_total") == metric(url, "bge_truncated_texts_total") == 6
        assert metric(url, "bge_tokens_total") == tokens
        assert metric(url, "bge_micro_batch_tokens_total") == tokens
        assert metric(url, "bge_micro_batch_seconds_total") > 0
        assert metric(url, "bge_micro_batches_total") == 3
        assert metric(url, 'bge_stage_seconds_count{stage="inference"}') == 3
        assert metric(url, "bge_queue_depth") == 0
        assert metric(url, "bge_fp32_retries_total") == packed.recomputed
        text = httpx.get(f"{url}/metrics").text
        fingerprint = packed.models["embed"].fingerprint
        model = f'fingerprint="{fingerprint}",model="miniature/bge-m3",role="embed"'
        assert f"bge_model_info{{{model}}} 1.0" in text


def test_the_access_log_has_one_line_a_request_and_no_text(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some libraries give every logger a handler, and this one would have paths and queries in it.
    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "handlers", [caplog.handler])
    httpx.get(f"{url}/ping")  # the line of the test before may come after its answer
    with caplog.at_level(logging.INFO):
        httpx.post(f"{url}/embed", json={"inputs": "секретный текст"})
        httpx.post(f"{url}/embed", json={"inputs": "", "секрет": 1})
        httpx.get(f"{url}/sekret?sekret=1")
        httpx.get(f"{url}/status/sekret")
        httpx.get(f"{url}/ping")
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.name == "bge_worker.access"]
    assert [(line["route"], line["status"]) for line in lines] == [
        *(("/embed", 200), ("/embed", 422), ("unknown", 404), ("/status/{job_id}", 404))
    ]
    assert lines[0].keys() == {"id", "method", "route", "status", "ms", "received", "sent"}
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith("httpx")]
    assert not re.search("секрет|sekret", " ".join(ours))
