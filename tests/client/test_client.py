"""The client against a scripted endpoint: requests, polling, retries, errors."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import bge_client
from bge_client import Client, errors, protocol, retry
from bge_client.chunking import MAX_CHUNK_TEXTS
from bge_client.endpoint import KEY_VARIABLES
from fakes.clients import CLIENTS
from fakes.scripted import (
    Action,
    Scripted,
    completed,
    completed_for,
    completed_with,
    compressed,
    failed,
    gzipped,
    half_body,
    half_head,
    job,
    malformed_head,
    raw,
    reset,
    silence,
    slow_body,
    slow_headers,
    status,
    vector_of,
)

NAN = base64.b64encode(np.full(8, np.nan, np.float32).tobytes()).decode()
KEY = "a-secret-key"
ENDPOINT_VARIABLES = [
    f"{owner}_{kind}_ENDPOINT" for kind in ("EMBEDDINGS", "RERANKER") for owner in ("RUNPOD", "BGE")
]
TEXTS = ["море", "суша"]
PAYLOAD = {"texts": TEXTS}
UNUSED = status(404)
SYNC, POLL, CANCEL = "POST /runsync", "GET /status/job-1", "POST /cancel/job-1"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "MIN_PAUSE", 0.001)
    monkeypatch.setattr(protocol, "MIN_POLL_PAUSE", 0.001)


@pytest.fixture
def endpoint() -> Iterator[Scripted]:
    with Scripted() as endpoint:
        endpoint.on(SYNC, completed)
        yield endpoint


@pytest.fixture(params=CLIENTS)
def connect(request: pytest.FixtureRequest) -> Any:
    """`Client`, or `AsyncClient` behind its methods: a test with this fixture runs with both."""
    return CLIENTS[request.param]


@pytest.fixture
def client(connect: Any, endpoint: Scripted) -> Iterator[Client]:
    with connect(endpoint.url, KEY, timeout=10) as client:
        yield client


def check_vectors(result: Any, texts: list[str]) -> None:
    np.testing.assert_array_equal(result.dense, [vector_of(text) for text in texts])


def test_request_matches_the_contract(client: Client, endpoint: Scripted) -> None:
    check_vectors(client.embed(TEXTS, max_length=100), TEXTS)
    (seen,) = endpoint.seen
    assert seen.headers["Authorization"] == f"Bearer {KEY}"
    assert seen.payload == {
        "texts": TEXTS,
        "return_dense": True,
        "return_sparse": False,
        "return_colbert": False,
        "truncate": True,
        "encoding_format": "base64",
        "dtype": "float32",
        "max_length": 100,
    }
    assert seen.body["policy"]["ttl"] >= 10_000


def test_netrc_does_not_replace_the_key(
    client: Client, endpoint: Scripted, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    client.embed(TEXTS)
    assert endpoint.seen[0].headers["Authorization"] == f"Bearer {KEY}"


def test_compressed_reply_is_read_and_its_cookie_dropped(
    client: Client, endpoint: Scripted
) -> None:
    endpoint.on(SYNC, gzipped)
    check_vectors(client.embed(TEXTS), TEXTS)
    check_vectors(client.embed(TEXTS), TEXTS)
    assert "gzip" in endpoint.seen[0].headers["Accept-Encoding"]
    assert "Cookie" not in endpoint.seen[1].headers


def test_body_is_bounded_after_decompression(
    client: Client, endpoint: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_BODY_BYTES", 1_000_000)
    endpoint.on(SYNC, compressed(b" " * 50_000_000))
    with pytest.raises(errors.ProtocolError, match="the response exceeds 1000000 bytes"):
        client.embed(TEXTS)
    assert len(endpoint.seen) == 1


def test_connection_is_used_again(client: Client, endpoint: Scripted) -> None:
    endpoint.on(SYNC, job("IN_QUEUE"))
    endpoint.on(POLL, job("IN_QUEUE"), completed_for(PAYLOAD))
    client.embed(TEXTS)
    assert len({seen.handler.client_address for seen in endpoint.seen}) == 1


@pytest.mark.parametrize("url", ["{}", "{}/", "{}/runsync", "{}/run/", "{}/v1", "{}/openai/v1/"])
def test_endpoint_may_end_with_a_route(url: str, endpoint: Scripted, connect: Any) -> None:
    with connect(url.format(endpoint.url)) as client:
        client.embed("море")
    assert endpoint.routes() == [SYNC]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("abc123",), {}, "`endpoint` must be an http(s) address"),
        (("https://user:secret@host/x",), {}, "neither a user, a query"),
        (("http://x",), {"timeout": 0}, "`timeout` must be above 0"),
        (("http://x",), {"max_in_flight": 0}, "`max_in_flight` must be at least 1"),
        (("http://x", "ключ"), {}, "`api_key` must be printable ASCII"),
        (("http://x", "a\nkey"), {}, "`api_key` must be printable ASCII"),
    ],
)
def test_invalid_argument_of_the_client_is_named(
    arguments: Any, options: Any, message: str, connect: Any
) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        connect(*arguments, **options)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_missing_certificates_are_a_configuration_error(
    connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, "/missing.pem")
    with pytest.raises(errors.ConfigurationError, match="TLS certificates cannot be read"):
        connect("https://127.0.0.1:9").info()


def test_invalid_argument_of_a_call_is_named(client: Client) -> None:
    with pytest.raises(errors.ConfigurationError, match="at least one of `dense`"):
        client.embed("a", dense=False)
    with pytest.raises(errors.ConfigurationError, match="`dtype` must be float32 or float16"):
        client.embed("a", dtype="int8")  # type: ignore[arg-type]
    with pytest.raises(errors.ConfigurationError, match="`top_n` must be at least 1"):
        client.rerank("q", ["a"], top_n=0)
    with pytest.raises(errors.ConfigurationError, match="`timeout` must be above 0"):
        client.info(timeout=-1)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "`texts` must hold at least one text"),
        (["a", " "], "`texts[1]` must not be empty or blank"),
        (["a", 5], "`texts[1]` must be a string. Given: int"),
        (["\ud800"], "`texts[0]` must be valid Unicode"),
        (5, "`texts` must hold strings. Given: int"),
    ],
)
def test_invalid_texts_are_not_sent(
    texts: Any, message: str, client: Client, endpoint: Scripted
) -> None:
    with pytest.raises(errors.ValidationError) as caught:
        client.embed(texts)
    assert message in str(caught.value)
    assert not endpoint.seen


# ------------------------------------------------------------------- retries and errors


@pytest.mark.parametrize(
    "first",
    [
        status(429), status(500), status(503), status(408), raw(b"<html>Bad gateway</html>", 502),
        reset, half_body, half_head,
        *(malformed_head(h) for h in (b"Content-Length: abc", b"Content-Length: -5", b"X: \0")),
        status(429, {"error": "OverloadedError: 512 requests are waiting"}),
        failed("OverloadedError: 512 requests are waiting; try again later"),
        failed("OutOfMemoryError: `texts[0]` has 8192 tokens and does not fit the device"),
        failed("InferenceError: the log tells more under 0123"),
    ],
    ids=[
        *("429", "500", "503", "408", "502-html", "reset", "half-a-body", "half-a-head"),
        *("length-abc", "length-below-0", "header-nul"),
        *("429-overloaded", "overloaded", "out-of-memory", "inference"),
    ],
)  # fmt: skip
def test_transient_errors_are_retried(first: Action, client: Client, endpoint: Scripted) -> None:
    endpoint.on(SYNC, first, first, completed)
    check_vectors(client.embed(TEXTS), TEXTS)
    assert endpoint.routes() == [SYNC] * 3


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (status(401), errors.AuthenticationError, "the key is missing or not accepted (HTTP 401"),
        (status(403), errors.AuthenticationError, "HTTP 403"),
        (status(400), errors.HTTPStatusError, "HTTP 400: from the platform"),
        (
            status(302, Location="http://x"),
            errors.HTTPStatusError,
            "HTTP 302: redirects are not followed",
        ),
        (status(422, {"error": "ValidationError: `texts`"}), errors.ValidationError, "`texts`"),
        (failed("ValidationError: `texts[1]` must"), errors.ValidationError, "`texts[1]` must"),
        (failed("NotServedError: no model"), errors.NotServedError, "no model"),
        (failed("TooLargeError: at most 3"), errors.TooLargeError, "at most 3"),
        (failed("worker exited with exit code 1"), errors.JobError, "worker exited with"),
        (failed({"an": "object"}), errors.JobError, "failed without saying why"),
        (failed(json.dumps({"error_type": "<class 'KeyError'>", "error_traceback": "секрет"})),
         errors.JobError, "the worker's handler raised <class 'KeyError'>"),
        (job("COMPLETED", output={"error": "NotServedError: x"}), errors.NotServedError, "x"),
        (job("CANCELLED"), errors.JobCancelledError, "was cancelled"),
        (job("TIMED_OUT"), errors.JobTimedOutError, "took too long"),
        (job("COMPLETED"), errors.ProtocolError, "COMPLETED without output"),
        (job("SLEEPING"), errors.ProtocolError, "no known `status`"),
        (raw(b"<html>Sign in</html>"), errors.ProtocolError, "an HTML page"),
        (raw(b'{"status": "COMPL'), errors.ProtocolError, "not JSON"),
        (raw(b'{"status": NaN}'), errors.ProtocolError, "NaN is not JSON"),
        (raw(b"[]"), errors.ProtocolError, "must be a JSON object, not list"),
        (raw(b"[" * 100_000), errors.ProtocolError, "nested deeper than 100"),
        (raw(b'{"a":' * 101 + b"1" + b"}" * 101), errors.ProtocolError, "nested deeper than 100"),
        (raw(b'{"id": %s}' % (b"9" * 5000)), errors.ProtocolError, "not JSON: Exceeds the limit"),
        (raw(b"[" * 100_000, 400), errors.HTTPStatusError, "HTTP 400"),
        (failed("[" * 100_000), errors.JobError, "the job failed: [[["),
        (completed_with(embeddings=["AAAA"]), errors.ProtocolError, "must hold 2 items. Given: 1"),
        (completed_with(dimensions=9), errors.ProtocolError, "must have 9 dimensions each"),
        (completed_with(embeddings=["!", "!"]), errors.ProtocolError, "must be base64"),
        (completed_with(embeddings=[NAN] * 2), errors.ProtocolError, "NaN"),
        (completed_with(fingerprint=None), errors.ProtocolError, "`fingerprint`"),
        (completed_with(usage={}), errors.ProtocolError, "`usage`"),
        (completed_with(truncated=[7]), errors.ProtocolError, "`truncated`"),
    ],
)  # fmt: skip
def test_permanent_errors_are_raised_at_once(
    answer: Action, kind: type[errors.BGEError], message: str, client: Client, endpoint: Scripted
) -> None:
    endpoint.on(SYNC, answer)
    with pytest.raises(kind) as caught:
        client.embed(TEXTS, dtype="float32")
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert "секрет" not in str(caught.value)
    assert set(endpoint.routes()) == {SYNC}
    assert len(endpoint.seen) == (2 if kind is errors.TooLargeError else 1)


@pytest.mark.parametrize(
    "score",
    [10**400, -(10**400), True, "0.5", None],
    ids=["huge", "minus huge", "bool", "string", "null"],
)
def test_score_that_is_not_a_number_is_refused(
    score: Any, client: Client, endpoint: Scripted
) -> None:
    endpoint.on(SYNC, completed_with(results=[{"index": 0, "relevance_score": score}]))
    with pytest.raises(errors.ProtocolError, match="must hold a `relevance_score`"):
        client.rerank("q", ["a"])


def test_retry_after_is_respected(client: Client, endpoint: Scripted) -> None:
    endpoint.on(SYNC, status(429, Retry_After="1"), completed)
    start = time.monotonic()
    client.embed(TEXTS)
    assert time.monotonic() - start >= 1


def test_retry_after_beyond_the_deadline_is_raised_at_once(
    endpoint: Scripted, connect: Any
) -> None:
    endpoint.on(SYNC, status(429, Retry_After="3600"))
    with connect(endpoint.url, timeout=10) as client, pytest.raises(errors.RateLimitError):
        client.embed(TEXTS)


def test_retries_are_limited(client: Client, endpoint: Scripted) -> None:
    endpoint.on(SYNC, status(500))
    with pytest.raises(errors.HTTPStatusError, match="HTTP 500"):
        client.embed(TEXTS)
    assert len(endpoint.seen) == 1 + retry.RETRIES


def test_refused_connection_is_reported(connect: Any) -> None:
    refused = pytest.raises(errors.TransportError, match=r"127\.0\.0\.1:9: Connection refused")
    with connect("http://127.0.0.1:9", timeout=10) as client, refused:
        client.info()


# ------------------------------------------------------------------------ input_digest


def digest_of(*texts: str) -> str:
    """Compute `input_digest` as the contract defines it."""
    parts = [len(t.encode()).to_bytes(8, "little") + t.encode() for t in texts]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def test_reply_with_matching_input_digest_is_accepted(client: Client, endpoint: Scripted) -> None:
    endpoint.on(SYNC, completed_with(input_digest=digest_of(*TEXTS)))
    check_vectors(client.embed(TEXTS), TEXTS)
    endpoint.on(SYNC, completed_with(input_digest=digest_of("вода", *TEXTS)))
    assert len(client.rerank("вода", TEXTS)) == 2


def test_mixed_up_reply_is_retried_on_a_new_connection(client: Client, endpoint: Scripted) -> None:
    ports = []

    def mixed_up(exchange: Any) -> None:
        ports.append(exchange.handler.client_address)
        changes = {"input_digest": digest_of("another")} if len(ports) == 1 else {}
        completed_with(**changes)(exchange)

    endpoint.on(SYNC, mixed_up)
    check_vectors(client.embed(TEXTS), TEXTS)
    assert len(set(ports)) == 2


def test_repeatedly_mixed_up_replies_are_refused(client: Client, endpoint: Scripted) -> None:
    endpoint.on(SYNC, completed_with(input_digest=digest_of(*TEXTS[::-1])))
    with pytest.raises(errors.MixedUpReplyError, match="belongs to another request"):
        client.embed(TEXTS)
    with pytest.raises(errors.MixedUpReplyError):
        client.rerank(TEXTS[1], TEXTS[:1] * 2)


def test_results_are_sliced_and_compared_by_identity(client: Client) -> None:
    result = client.embed(TEXTS)
    assert [item.fingerprint for item in result[-1:]] == ["f"]
    np.testing.assert_array_equal([item.dense for item in result[::-1]], result.dense[::-1])
    assert {result} != {client.embed(TEXTS)}


# -------------------------------------------------------------------------- environment


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*ENDPOINT_VARIABLES, *KEY_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_endpoint_and_key_come_from_the_environment(
    env: pytest.MonkeyPatch, endpoint: Scripted, connect: Any
) -> None:
    for name in reversed(ENDPOINT_VARIABLES):
        env.setenv(name, f"{endpoint.url}/runsync")
        env.setenv("RUNPOD_API_KEY", "runpod's")
        with connect() as client:
            client.embed("море")
        env.setenv("BGE_API_KEY", "server's")
        with connect() as client:
            client.embed("море")
        with connect(api_key="") as client:
            client.embed("море")
        env.setenv(name, "http://127.0.0.1:9")  # the next one takes precedence
        env.delenv("BGE_API_KEY")
    keys = [seen.headers.get("Authorization") for seen in endpoint.seen]
    assert keys == ["Bearer runpod's", "Bearer server's", None] * len(ENDPOINT_VARIABLES)


def test_missing_endpoint_names_the_variables(env: pytest.MonkeyPatch, connect: Any) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        connect(None)
    assert str(caught.value) == (
        "pass an `endpoint`, or set `BGE_EMBEDDINGS_ENDPOINT` or `BGE_RERANKER_ENDPOINT`"
    )


# ----------------------------------------------------------------------------- polling


def test_queued_job_is_polled(
    client: Client, endpoint: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.on(SYNC, job("IN_QUEUE"))
    done = completed_for(PAYLOAD)
    endpoint.on(POLL, job("IN_QUEUE"), status(502), reset, job("IN_PROGRESS"), done)
    with caplog.at_level(logging.INFO, "bge_client"):
        check_vectors(client.embed(TEXTS), TEXTS)
    assert endpoint.routes() == [SYNC] + [POLL] * 5
    assert "job job-1 is waiting for a worker" in caplog.text
    assert "job job-1 is running" in caplog.text
    assert KEY not in caplog.text


def test_expired_result_is_requested_again(client: Client, endpoint: Scripted) -> None:
    endpoint.on(SYNC, job("IN_PROGRESS"), completed)
    endpoint.on(POLL, status(404))
    check_vectors(client.embed(TEXTS), TEXTS)
    assert endpoint.routes() == [SYNC, POLL, SYNC]


def test_job_that_fails_while_polled_is_not_cancelled(client: Client, endpoint: Scripted) -> None:
    endpoint.on(SYNC, job("IN_QUEUE"))
    endpoint.on(POLL, failed("NotServedError: no model"))
    with pytest.raises(errors.NotServedError):
        client.embed(TEXTS)
    assert endpoint.routes() == [SYNC, POLL]


def test_retried_job_has_only_the_remaining_time(endpoint: Scripted, connect: Any) -> None:
    def late_reset(exchange: Any) -> None:
        time.sleep(1)
        reset(exchange)

    endpoint.on(SYNC, late_reset, completed)
    with connect(endpoint.url, timeout=20) as client:
        client.embed(TEXTS)
    first, second = (seen.body["policy"]["ttl"] for seen in endpoint.seen)
    assert second < first - 500


def test_key_in_a_response_is_redacted(
    client: Client, endpoint: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    queued = status(200, {"id": f"job-{KEY}", "status": "IN_QUEUE"})
    endpoint.on(SYNC, status(503, {"error": f"no {KEY}"}), queued)
    endpoint.on(f"GET /status/job-{KEY}", status(401, {"error": f"no {KEY}"}))
    with (
        caplog.at_level(logging.INFO, "bge_client"),
        pytest.raises(errors.AuthenticationError) as caught,
    ):
        client.embed(TEXTS)
    assert "job job-*** is waiting" in caplog.text
    assert KEY not in str(caught.value) + caplog.text + repr(client)


def test_error_response_without_body_is_handled(client: Client, endpoint: Scripted) -> None:
    def empty(exchange: Any) -> None:
        exchange.handler.wfile.write(b"HTTP/1.1 401 No\r\nConnection: close\r\n\r\n")
        exchange.handler.close_connection = True

    endpoint.on(SYNC, empty)
    with pytest.raises(errors.AuthenticationError):
        client.embed(TEXTS)


def test_exception_context_of_the_caller_is_ignored(connect: Any) -> None:
    with connect("http://127.0.0.1:9", timeout=1) as client:
        try:
            raise KeyError("the caller's")
        except KeyError:
            with pytest.raises(errors.TransportError, match="Connection refused"):
                client.info()


@pytest.mark.parametrize(
    ("sync", "poll"),
    [
        (silence, UNUSED), (slow_headers, UNUSED), (slow_body, UNUSED), (status(429), UNUSED),
        (job("IN_QUEUE"), job("IN_QUEUE")), (job("IN_QUEUE"), silence),
        (job("IN_QUEUE"), slow_headers), (job("IN_QUEUE"), slow_body),
        (job("IN_PROGRESS"), status(429)),
    ],
    ids=[
        *("silent", "dripping-head", "dripping-body", "backing-off", "queued", "silent-poll"),
        *("dripping-poll-head", "dripping-poll-body", "polls-refused"),
    ],
)  # fmt: skip
def test_deadline_holds_in_every_phase_and_the_job_is_cancelled(
    sync: Action, poll: Action, endpoint: Scripted, connect: Any
) -> None:
    endpoint.on(SYNC, sync)
    endpoint.on(POLL, poll)
    endpoint.on(CANCEL, job("CANCELLED"))
    with connect(endpoint.url, KEY) as client:
        start = time.monotonic()
        with pytest.raises((errors.DeadlineError, errors.RateLimitError)):
            client.embed(TEXTS, timeout=0.4)
        # The blocking client waits for the end of a head, of at most 100 lines.
        is_late = connect is Client and slow_headers in (sync, poll)
        assert time.monotonic() - start < (5 if is_late else 2)
    has_job_id = sync not in (silence, slow_headers, slow_body) and poll is not UNUSED
    assert (CANCEL in endpoint.routes()) == has_job_id


# -------------------------------------------------------------------------- splitting


MANY = [f"текст {number}" for number in range(1000)]


def test_many_texts_are_split_and_come_back_in_order(client: Client, endpoint: Scripted) -> None:
    check_vectors(client.embed(MANY), MANY)
    sizes = [len(seen.payload.get("texts", [])) for seen in endpoint.seen]
    assert sorted(sizes) == [0, 1000 - 3 * MAX_CHUNK_TEXTS, *[MAX_CHUNK_TEXTS] * 3]


def test_limits_of_the_worker_are_respected(client: Client, endpoint: Scripted) -> None:
    def limited(exchange: Any) -> None:
        changes = {"limits": {"max_texts": 100}} if "info" in exchange.payload else {}
        assert len(exchange.payload.get("texts", [])) <= 100
        completed_with(**changes)(exchange)

    endpoint.on(SYNC, limited)
    check_vectors(client.embed(MANY), MANY)
    client.embed(MANY)
    assert sum("info" in seen.payload for seen in endpoint.seen) == 1


def test_chunk_that_is_too_large_is_halved(client: Client, endpoint: Scripted) -> None:
    def small_only(exchange: Any) -> None:
        size = len(exchange.payload.get("texts", []))
        action = status(413) if size > 40 else completed
        action(exchange)

    endpoint.on(SYNC, small_only)
    check_vectors(client.embed(MANY[:200]), MANY[:200])


def test_index_in_an_error_counts_from_the_first_text(client: Client, endpoint: Scripted) -> None:
    def last_refused(exchange: Any) -> None:
        texts = exchange.payload.get("texts", [])
        index = texts.index(MANY[-1]) if MANY[-1] in texts else None
        refusal = failed(f"ValidationError: `texts[{index}]` has 9 tokens")
        (completed if index is None else refusal)(exchange)

    endpoint.on(SYNC, last_refused)
    with pytest.raises(errors.ValidationError, match=r"`texts\[999\]` has 9 tokens") as caught:
        client.embed(MANY)
    assert (caught.value.field, caught.value.index) == ("texts", 999)


def test_data_of_an_error_response_is_kept(client: Client, endpoint: Scripted) -> None:
    body = {"error": "ValidationError: too long", "field": "texts", "index": 1, "limit": 100}
    endpoint.on(SYNC, status(422, body))
    with pytest.raises(errors.ValidationError, match="too long") as caught:
        client.embed(TEXTS)
    assert (caught.value.field, caught.value.index, caught.value.limit) == ("texts", 1, 100)
    endpoint.on(SYNC, status(429, Retry_After="3600"))
    with pytest.raises(errors.RateLimitError) as refused:
        client.embed(TEXTS)
    assert refused.value.retry_after == 3600


@pytest.mark.parametrize("bad", [0, 768])
def test_first_failure_ends_the_call(bad: int, client: Client, endpoint: Scripted) -> None:
    def refuse_one_chunk(exchange: Any) -> None:
        first = exchange.payload.get("texts", [""])[0]
        (status(401) if first == MANY[bad] else silence if first else completed)(exchange)

    endpoint.on(SYNC, refuse_one_chunk)
    start = time.monotonic()
    with pytest.raises(errors.AuthenticationError):
        client.embed(MANY)
    assert time.monotonic() - start < 5


def test_vectors_of_two_models_are_not_mixed(client: Client, endpoint: Scripted) -> None:
    def rolling(exchange: Any) -> None:
        new = MANY[-1] in exchange.payload.get("texts", [])
        completed_with(**({"fingerprint": "g"} if new else {}))(exchange)

    endpoint.on(SYNC, rolling)
    with pytest.raises(errors.FingerprintError, match=r"expected\. Given: those of"):
        client.embed(MANY)
    with pytest.raises(errors.FingerprintError):
        list(client.embed_iter(MANY))


def test_vectors_of_an_unexpected_model_are_refused(endpoint: Scripted, connect: Any) -> None:
    refused = pytest.raises(errors.FingerprintError, match="model another were expected")
    with connect(endpoint.url, expect_fingerprint="another") as client, refused:
        client.rerank("q", TEXTS)  # of another model in any case
        client.embed(TEXTS)


def test_ranking_is_split_and_merged(client: Client, endpoint: Scripted) -> None:
    documents = ["x" * (1 + number * 7919 % 1000) for number in range(1000)]
    ranking = client.rerank("q", documents, top_n=3)
    assert [document.relevance_score for document in ranking] == [1000, 999, 998]
    assert all(documents[document.index] == document.document for document in ranking)
    assert ranking.fingerprint == "r"
    assert len([seen for seen in endpoint.seen if "query" in seen.payload]) == 4


def test_documents_may_be_objects_with_a_text(client: Client, endpoint: Scripted) -> None:
    ranking = client.rerank("q", ["bb", {"text": "a", "id": 7}, {"text": "ccc"}])
    assert [document.document for document in ranking] == ["ccc", "bb", "a"]
    assert endpoint.seen[0].payload["documents"] == ["bb", "a", "ccc"]
    with pytest.raises(
        errors.ValidationError, match=r"`documents\[1\]` must be a string"
    ) as caught:
        client.rerank("q", ["bb", {"title": "a"}])
    assert (caught.value.field, caught.value.index) == ("documents", 1)


def test_equal_scores_keep_the_order_of_the_documents(client: Client) -> None:
    ranking = client.rerank("q", ["bb", "a", "cc", "d"])
    assert [document.index for document in ranking] == [0, 2, 1, 3]


def test_embed_iter_reads_and_sends_lazily(client: Client, endpoint: Scripted) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield f"текст {read}"

    vectors = client.embed_iter(endless())
    for number in range(1, 1001):
        np.testing.assert_array_equal(next(vectors).dense, vector_of(f"текст {number}"))
    vectors.close()  # type: ignore[attr-defined]
    limit = (2 * 8 + 8) * MAX_CHUNK_TEXTS
    assert read < 1000 + limit
    time.sleep(0.2)  # requests in flight arrive
    before = len(endpoint.seen)
    time.sleep(0.2)
    assert len(endpoint.seen) == before


def test_embed_iter_takes_a_string_as_one_text(client: Client) -> None:
    (embedding,) = client.embed_iter("море")
    np.testing.assert_array_equal(embedding.dense, vector_of("море"))
    for texts in ({"море": 1}, b"a", None):
        with pytest.raises(errors.ValidationError, match="`texts` must hold strings"):
            next(client.embed_iter(texts))  # type: ignore[arg-type]


def test_embed_iter_yields_the_texts_before_an_invalid_one(client: Client) -> None:
    vectors = client.embed_iter([*MANY, " "])
    for text in MANY:
        np.testing.assert_array_equal(next(vectors).dense, vector_of(text))
    with pytest.raises(errors.ValidationError, match=r"`texts\[1000\]` must not be empty"):
        next(vectors)


def test_slow_source_does_not_use_up_the_timeout(client: Client) -> None:
    def slow() -> Iterator[str]:
        for number in range(300):
            time.sleep(0.002)
            yield MANY[number]

    assert len(list(client.embed_iter(slow(), timeout=0.3))) == 300


def test_deadlines_of_two_calls_are_independent(client: Client, endpoint: Scripted) -> None:
    endpoint.on(SYNC, silence)
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(client.embed, MANY, timeout=3)
        start = time.monotonic()
        with pytest.raises(errors.DeadlineError):
            client.embed(MANY, timeout=0.3)
        assert time.monotonic() - start < 2
        with pytest.raises(errors.DeadlineError):
            patient.result()


# --------------------------------------------------------------------------- the package


def test_truncated_texts_do_not_slow_iteration_down() -> None:
    count = 100_000
    dense, usage = np.zeros((count, 1), np.float32), bge_client.Usage()
    truncated = list(range(count))
    result = bge_client.EmbedResult(dense, None, None, truncated, usage, "m", "f", count)
    start = time.perf_counter()
    assert all(embedding.truncated for embedding in result)
    assert time.perf_counter() - start < 5  # a search in the list for each text takes 30 s


def test_all_names_every_export_and_error() -> None:
    assert sorted(bge_client.__all__) == bge_client.__all__
    assert all(hasattr(bge_client, name) for name in bge_client.__all__)
    raised = {name for name in dir(errors) if name.endswith("Error")}
    assert raised <= set(bge_client.__all__)


def test_health_returns_runpod_s_reply(client: Client, endpoint: Scripted) -> None:
    endpoint.on("GET /health", status(200, {"jobs": {}, "workers": {"idle": 1}}))
    assert client.health()["workers"] == {"idle": 1}


def test_another_route_may_reply_any_json(client: Client, endpoint: Scripted) -> None:
    endpoint.on("POST /tokenize", status(503), status(200, [["море"]]))
    assert client.post("/tokenize", {"inputs": "море"}) == [["море"]]
    endpoint.on("POST /tokenize", status(404))
    with pytest.raises(errors.HTTPStatusError, match="404"):
        client.post("/tokenize", {})
    assert [seen.body for seen in endpoint.seen] == [{"inputs": "море"}] * 2 + [{}]


def test_warm_up_waits_for_a_worker_and_returns_its_info(
    client: Client, endpoint: Scripted
) -> None:
    refusals = [status(503)] * (2 * retry.RETRIES)
    endpoint.on(SYNC, *refusals, job("IN_QUEUE"))
    endpoint.on(POLL, job("IN_PROGRESS"), completed_for({"info": True}))
    assert client.warm_up(timeout=10)["limits"] == {"max_texts": 2048}
    assert {json.dumps(seen.payload) for seen in endpoint.seen if seen.body} == {'{"info": true}'}


def test_representations_are_one_line_without_vectors_and_keys(
    client: Client, endpoint: Scripted
) -> None:
    result, ranking = client.embed(TEXTS), client.rerank("q", TEXTS)
    shown = [repr(client), repr(result), repr(result[0]), repr(ranking), repr(ranking[0])]
    assert shown == [
        f"{'Async' * (type(client) is not Client)}Client({endpoint.url!r})",
        "EmbedResult(2 texts, dense=float32[2, 8], sparse=False, colbert=False, truncated=0, "
        "model='m')",
        "Embedding(dense=float32[8], sparse=None, colbert=None, fingerprint='f')",
        "RerankResult(2 documents, best: 0 at 4, model='r')",
        "RankedDocument(index=0, relevance_score=4.0, document='море')",
    ]
