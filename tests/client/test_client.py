"""The client against an endpoint that follows a script: what is sent, polled, retried, raised."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bge_client
from bge_client import Client, errors, transport
from bge_client.split import MAX_CHUNK_BYTES, MAX_CHUNK_TEXTS, Limits, split_texts
from fakes.scripted import (
    Action,
    Scripted,
    completed,
    completed_with,
    done,
    dripping,
    failed,
    half,
    job,
    raw,
    reset,
    silence,
    status,
    vector_of,
)

NAN = base64.b64encode(np.full(8, np.nan, np.float32).tobytes()).decode()
KEY = "a-key-nobody-may-see"
TEXTS = ["море", "суша"]
PAYLOAD = {"texts": TEXTS}
UNASKED = status(404)
SYNC, POLL, CANCEL = "POST /runsync", "GET /status/job-1", "POST /cancel/job-1"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MIN_PAUSE", 0.001)
    monkeypatch.setattr(transport, "MIN_POLL_PAUSE", 0.001)


@pytest.fixture
def endpoint() -> Iterator[Scripted]:
    with Scripted() as endpoint:
        endpoint.on(SYNC, completed)
        yield endpoint


@pytest.fixture
def client(endpoint: Scripted) -> Iterator[Client]:
    with Client(endpoint.url, KEY, timeout=10) as client:
        yield client


def check_vectors(result: Any, texts: list[str]) -> None:
    np.testing.assert_array_equal(result.dense, [vector_of(text) for text in texts])


def test_a_request_is_the_contract_s_and_brings_the_key(client: Client, endpoint: Scripted) -> None:
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


def test_a_netrc_s_password_does_not_take_the_key_s_place(
    client: Client, endpoint: Scripted, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    client.embed(TEXTS)
    assert endpoint.seen[0].headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("url", ["{}", "{}/", "{}/runsync", "{}/run/"])
def test_an_endpoint_is_a_base_or_a_full_address(url: str, endpoint: Scripted) -> None:
    with Client(url.format(endpoint.url)) as client:
        client.embed("море")
    assert endpoint.routes() == [SYNC]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Client("abc123"), "`endpoint` must be an http(s) address"),
        (lambda: Client("https://user:secret@host/x"), "neither a user, a query"),
        (lambda: Client("http://x", timeout=0), "`timeout` must be above 0"),
        (lambda: Client("http://x", max_in_flight=0), "`max_in_flight` must be at least 1"),
        (lambda: Client("http://x", "ключ"), "`api_key` must be printable ASCII"),
        (lambda: Client("http://x", "a\nkey"), "`api_key` must be printable ASCII"),
        (lambda: Client("http://x").embed("a", dense=False), "at least one of `dense`"),
        (lambda: Client("http://x").rerank("q", ["a"], top_n=0), "`top_n` must be at least 1"),
    ],
)
def test_a_wrong_argument_is_named(make: Any, sentence: str) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        make()
    assert sentence in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ([], "`texts` must hold at least one text"),
        (["a", " "], "`texts[1]` must not be empty or blank"),
        (["a", 5], "`texts[1]` must be a string. Given: int"),
        (["\ud800"], "`texts[0]` must be valid Unicode"),
        (5, "`texts` must hold strings. Given: int"),
    ],
)
def test_what_no_worker_would_take_is_not_sent(
    texts: Any, sentence: str, client: Client, endpoint: Scripted
) -> None:
    with pytest.raises(errors.ValidationError) as caught:
        client.embed(texts)
    assert sentence in str(caught.value)
    assert not endpoint.seen


# -------------------------------------------------------------------- tried again, or not


@pytest.mark.parametrize(
    "first",
    [
        status(429), status(500), status(503), status(408), raw(b"<html>Bad gateway</html>", 502),
        reset, half, status(429, {"error": "OverloadedError: 512 requests are waiting"}),
        failed("OverloadedError: 512 requests are waiting; try again later"),
        failed("OutOfMemoryError: `texts[0]` has 8192 tokens and does not fit the device"),
        failed("InferenceError: the log tells more under 0123"),
    ],
    ids=[
        *("429", "500", "503", "408", "502-html", "reset", "half-a-body", "429-overloaded"),
        *("overloaded", "out-of-memory", "inference"),
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_again(first: Action, client: Client, endpoint: Scripted) -> None:
    endpoint.on(SYNC, first, first, completed)
    check_vectors(client.embed(TEXTS), TEXTS)
    assert endpoint.routes() == [SYNC] * 3


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        (status(401), errors.AuthenticationError, "the key is missing or not accepted (HTTP 401"),
        (status(403), errors.AuthenticationError, "HTTP 403"),
        (status(400), errors.HTTPStatusError, "HTTP 400: said by the platform"),
        (status(302, Location="http://x"), errors.HTTPStatusError, "HTTP 302"),
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
def test_what_will_not_pass_is_raised_at_once(
    answer: Action, kind: type[errors.BGEError], sentence: str, client: Client, endpoint: Scripted
) -> None:
    endpoint.on(SYNC, answer)
    with pytest.raises(kind) as caught:
        client.embed(TEXTS, dtype="float32")
    assert type(caught.value) is kind
    assert sentence in str(caught.value)
    assert "секрет" not in str(caught.value)
    assert set(endpoint.routes()) == {SYNC}
    assert len(endpoint.seen) == (2 if kind is errors.TooLargeError else 1)


@pytest.mark.parametrize(
    "score",
    [10**400, -(10**400), True, "0.5", None],
    ids=["huge", "minus huge", "bool", "string", "null"],
)
def test_a_score_that_is_no_number_is_refused(
    score: Any, client: Client, endpoint: Scripted
) -> None:
    endpoint.on(SYNC, completed_with(results=[{"index": 0, "relevance_score": score}]))
    with pytest.raises(errors.ProtocolError, match="must hold a `relevance_score`"):
        client.rerank("q", ["a"])


def test_a_rate_limit_is_waited_for_as_long_as_it_says(client: Client, endpoint: Scripted) -> None:
    endpoint.on(SYNC, status(429, Retry_After="1"), completed)
    began = time.monotonic()
    client.embed(TEXTS)
    assert time.monotonic() - began >= 1


def test_a_rate_limit_longer_than_the_deadline_is_raised_at_once(endpoint: Scripted) -> None:
    endpoint.on(SYNC, status(429, Retry_After="3600"))
    with Client(endpoint.url, timeout=10) as client, pytest.raises(errors.RateLimitError):
        client.embed(TEXTS)


def test_what_fails_for_good_is_given_up(client: Client, endpoint: Scripted) -> None:
    endpoint.on(SYNC, status(500))
    with pytest.raises(errors.HTTPStatusError, match="HTTP 500"):
        client.embed(TEXTS)
    assert len(endpoint.seen) == 1 + transport.RETRIES


def test_nobody_there_is_said() -> None:
    refused = pytest.raises(errors.TransportError, match=r"127\.0\.0\.1:9: Connection refused")
    with Client("http://127.0.0.1:9", timeout=10) as client, refused:
        client.info()


# ------------------------------------------------------------------- whose reply it is


def digest_of(*texts: str) -> str:
    """As the contract has it."""
    parts = [len(t.encode()).to_bytes(8, "little") + t.encode() for t in texts]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def test_a_reply_that_names_its_input_is_taken(client: Client, endpoint: Scripted) -> None:
    endpoint.on(SYNC, completed_with(input_digest=digest_of(*TEXTS)))
    check_vectors(client.embed(TEXTS), TEXTS)
    endpoint.on(SYNC, completed_with(input_digest=digest_of("вода", *TEXTS)))
    assert len(client.rerank("вода", TEXTS)) == 2


def test_another_request_s_reply_is_asked_for_again_on_a_new_connection(
    client: Client, endpoint: Scripted
) -> None:
    ports = []

    def mixed_up(exchange: Any) -> None:
        ports.append(exchange.handler.client_address)
        changes = {"input_digest": digest_of("another")} if len(ports) == 1 else {}
        completed_with(**changes)(exchange)

    endpoint.on(SYNC, mixed_up)
    check_vectors(client.embed(TEXTS), TEXTS)
    assert len(set(ports)) == 2


def test_replies_of_other_requests_alone_are_refused(client: Client, endpoint: Scripted) -> None:
    endpoint.on(SYNC, completed_with(input_digest=digest_of(*TEXTS[::-1])))
    with pytest.raises(errors.MixedUpReplyError, match="belongs to another request"):
        client.embed(TEXTS)
    with pytest.raises(errors.MixedUpReplyError):
        client.rerank(TEXTS[1], TEXTS[:1] * 2)


# ------------------------------------------------------------------------- waiting for a job


def test_a_job_that_waits_is_polled(
    client: Client, endpoint: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.on(SYNC, job("IN_QUEUE"))
    endpoint.on(POLL, job("IN_QUEUE"), status(502), reset, job("IN_PROGRESS"), done(PAYLOAD))
    with caplog.at_level(logging.INFO, "bge_client"):
        check_vectors(client.embed(TEXTS), TEXTS)
    assert endpoint.routes() == [SYNC] + [POLL] * 5
    assert "job job-1 is waiting for a worker" in caplog.text
    assert "job job-1 is running" in caplog.text
    assert KEY not in caplog.text


def test_a_result_that_expired_is_asked_for_again(client: Client, endpoint: Scripted) -> None:
    endpoint.on(SYNC, job("IN_PROGRESS"), completed)
    endpoint.on(POLL, status(404))
    check_vectors(client.embed(TEXTS), TEXTS)
    assert endpoint.routes() == [SYNC, POLL, SYNC]


def test_a_job_that_fails_while_it_is_polled_is_not_cancelled(
    client: Client, endpoint: Scripted
) -> None:
    endpoint.on(SYNC, job("IN_QUEUE"))
    endpoint.on(POLL, failed("NotServedError: no model"))
    with pytest.raises(errors.NotServedError):
        client.embed(TEXTS)
    assert endpoint.routes() == [SYNC, POLL]


def test_a_job_sent_again_has_only_the_time_that_is_left(endpoint: Scripted) -> None:
    def late_reset(exchange: Any) -> None:
        time.sleep(1)
        reset(exchange)

    endpoint.on(SYNC, late_reset, completed)
    with Client(endpoint.url, timeout=20) as client:
        client.embed(TEXTS)
    first, second = (seen.body["policy"]["ttl"] for seen in endpoint.seen)
    assert second < first - 500


def test_a_key_that_a_server_repeats_is_not_passed_on(
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


def test_an_empty_refusal_is_one_too(client: Client, endpoint: Scripted) -> None:
    def empty(exchange: Any) -> None:
        exchange.handler.wfile.write(b"HTTP/1.1 401 No\r\nConnection: close\r\n\r\n")
        exchange.handler.close_connection = True

    endpoint.on(SYNC, empty)
    with pytest.raises(errors.AuthenticationError):
        client.embed(TEXTS)


def test_a_cause_of_the_caller_s_own_is_not_blamed() -> None:
    with Client("http://127.0.0.1:9", timeout=1) as client:
        try:
            raise KeyError("the caller's")
        except KeyError:
            with pytest.raises(errors.TransportError, match="Connection refused"):
                client.info()


def test_errors_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(errors.RateLimitError("HTTP 429", 429)))
    assert (str(error), error.status) == ("HTTP 429", 429)


@pytest.mark.parametrize(
    ("sync", "poll"),
    [
        (silence, UNASKED), (dripping, UNASKED), (status(429), UNASKED),
        (job("IN_QUEUE"), job("IN_QUEUE")), (job("IN_QUEUE"), silence),
        (job("IN_QUEUE"), dripping), (job("IN_PROGRESS"), status(429)),
    ],
    ids=[
        *("silent", "dripping-head", "backing-off", "queued", "silent-poll", "dripping-poll"),
        "polls-refused",
    ],
)  # fmt: skip
def test_the_deadline_holds_in_every_phase_and_the_job_is_cancelled(
    sync: Action, poll: Action, endpoint: Scripted
) -> None:
    endpoint.on(SYNC, sync)
    endpoint.on(POLL, poll)
    endpoint.on(CANCEL, job("CANCELLED"))
    with Client(endpoint.url, KEY) as client:
        began = time.monotonic()
        with pytest.raises((errors.DeadlineError, errors.RateLimitError)):
            client.embed(TEXTS, timeout=0.4)
        assert time.monotonic() - began < 2
    known = sync not in (silence, dripping) and poll is not UNASKED
    assert (CANCEL in endpoint.routes()) == known


def test_a_deadline_is_a_timeout_error() -> None:
    assert issubclass(errors.DeadlineError, TimeoutError)
    assert issubclass(errors.ConfigurationError, ValueError)


# -------------------------------------------------------------------------- splitting


MANY = [f"текст {number}" for number in range(1000)]


def test_many_texts_are_split_and_come_back_in_order(client: Client, endpoint: Scripted) -> None:
    check_vectors(client.embed(MANY), MANY)
    sizes = [len(seen.payload.get("texts", [])) for seen in endpoint.seen]
    assert sorted(sizes) == [0, 1000 - 3 * MAX_CHUNK_TEXTS, *[MAX_CHUNK_TEXTS] * 3]


def test_the_worker_s_own_limits_are_kept(client: Client, endpoint: Scripted) -> None:
    def limited(exchange: Any) -> None:
        changes = {"limits": {"max_texts": 100}} if "info" in exchange.payload else {}
        assert len(exchange.payload.get("texts", [])) <= 100
        completed_with(**changes)(exchange)

    endpoint.on(SYNC, limited)
    check_vectors(client.embed(MANY), MANY)
    client.embed(MANY)
    assert sum("info" in seen.payload for seen in endpoint.seen) == 1


def test_what_is_too_large_is_halved(client: Client, endpoint: Scripted) -> None:
    def small_only(exchange: Any) -> None:
        size = len(exchange.payload.get("texts", []))
        action = status(413) if size > 40 else completed
        action(exchange)

    endpoint.on(SYNC, small_only)
    check_vectors(client.embed(MANY[:200]), MANY[:200])


def test_a_place_in_an_error_is_counted_from_the_first_text(
    client: Client, endpoint: Scripted
) -> None:
    def last_refused(exchange: Any) -> None:
        texts = exchange.payload.get("texts", [])
        place = texts.index(MANY[-1]) if MANY[-1] in texts else None
        refusal = failed(f"ValidationError: `texts[{place}]` has 9 tokens")
        (completed if place is None else refusal)(exchange)

    endpoint.on(SYNC, last_refused)
    with pytest.raises(errors.ValidationError, match=r"`texts\[999\]` has 9 tokens"):
        client.embed(MANY)


@pytest.mark.parametrize("bad", [0, 768])
def test_the_first_failure_ends_the_whole_call(
    bad: int, client: Client, endpoint: Scripted
) -> None:
    def one_bad(exchange: Any) -> None:
        first = exchange.payload.get("texts", [""])[0]
        (status(401) if first == MANY[bad] else silence if first else completed)(exchange)

    endpoint.on(SYNC, one_bad)
    began = time.monotonic()
    with pytest.raises(errors.AuthenticationError):
        client.embed(MANY)
    assert time.monotonic() - began < 5


def test_vectors_of_two_models_are_not_mixed(client: Client, endpoint: Scripted) -> None:
    def rolling(exchange: Any) -> None:
        new = MANY[-1] in exchange.payload.get("texts", [])
        completed_with(**({"fingerprint": "g"} if new else {}))(exchange)

    endpoint.on(SYNC, rolling)
    with pytest.raises(errors.FingerprintError, match=r"expected\. Given: those of"):
        client.embed(MANY)
    with pytest.raises(errors.FingerprintError):
        list(client.embed_iter(MANY))


def test_a_client_bound_to_a_model_returns_no_other_s_vectors(endpoint: Scripted) -> None:
    refused = pytest.raises(errors.FingerprintError, match="model another were expected")
    with Client(endpoint.url, expect_fingerprint="another") as client, refused:
        client.rerank("q", TEXTS)  # another model's, in any case
        client.embed(TEXTS)


def test_a_ranking_is_split_and_merged(client: Client, endpoint: Scripted) -> None:
    documents = ["x" * (1 + number * 7919 % 1000) for number in range(1000)]
    found = client.rerank("q", documents, top_n=3)
    assert [one.relevance_score for one in found] == [1000, 999, 998]
    assert all(documents[one.index] == one.document for one in found)
    assert found.fingerprint == "r"
    assert len([seen for seen in endpoint.seen if "query" in seen.payload]) == 4


def test_equal_scores_keep_the_order_of_the_documents(client: Client) -> None:
    found = client.rerank("q", ["bb", "a", "cc", "d"])
    assert [one.index for one in found] == [0, 2, 1, 3]


def test_embed_iter_reads_and_sends_no_further_than_it_must(
    client: Client, endpoint: Scripted
) -> None:
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
    most = (2 * 8 + 8) * MAX_CHUNK_TEXTS
    assert read < 1000 + most
    time.sleep(0.2)  # what was just being sent arrives
    before = len(endpoint.seen)
    time.sleep(0.2)
    assert len(endpoint.seen) == before


def test_embed_iter_gives_what_came_before_a_bad_text(client: Client) -> None:
    vectors = client.embed_iter([*MANY, " "])
    for text in MANY:
        np.testing.assert_array_equal(next(vectors).dense, vector_of(text))
    with pytest.raises(errors.ValidationError, match=r"`texts\[1000\]` must not be empty"):
        next(vectors)


def test_a_slow_source_does_not_use_up_a_request_s_time(client: Client) -> None:
    def slow() -> Iterator[str]:
        for number in range(300):
            time.sleep(0.002)
            yield MANY[number]

    assert len(list(client.embed_iter(slow(), timeout=0.3))) == 300


def test_one_call_s_deadline_does_not_hang_on_another_s(client: Client, endpoint: Scripted) -> None:
    endpoint.on(SYNC, silence)
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(client.embed, MANY, timeout=3)
        began = time.monotonic()
        with pytest.raises(errors.DeadlineError):
            client.embed(MANY, timeout=0.3)
        assert time.monotonic() - began < 2
        with pytest.raises(errors.DeadlineError):
            patient.result()


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.text(max_size=400), max_size=600),
    st.integers(1, 300), st.integers(1, 100_000), st.integers(1, 10_000),
)  # fmt: skip
def test_pieces_are_all_the_texts_in_order_within_the_limits(
    texts: list[str], most_texts: int, most_bytes: int, most_tokens: int
) -> None:
    limits = Limits(most_texts, most_tokens, most_bytes)
    found = list(split_texts(texts, limits, reply_bytes=lambda t: 8 * len(t), tokens=len))
    assert [text for chunk in found for text in chunk] == texts
    for chunk in found:
        assert 1 <= len(chunk) <= min(most_texts, MAX_CHUNK_TEXTS)
        if len(chunk) > 1:
            characters = sum(map(len, chunk))
            assert characters <= most_tokens
            assert 8 * characters <= most_bytes
            assert sum(len(text.encode()) for text in chunk) <= MAX_CHUNK_BYTES


# --------------------------------------------------------------------------- the package


def test_all_is_what_the_readme_may_promise() -> None:
    assert sorted(bge_client.__all__) == bge_client.__all__
    assert all(hasattr(bge_client, name) for name in bge_client.__all__)
    raised = {name for name in dir(errors) if name.endswith("Error")}
    assert raised <= set(bge_client.__all__)


def test_the_tree_of_errors_is_the_one_in_the_docstring() -> None:
    drawn = errors.__doc__ or ""
    tree = [errors.BGEError]
    for kind in tree:
        assert kind.__name__ in drawn
        tree += kind.__subclasses__()


def test_health_is_runpod_s(client: Client, endpoint: Scripted) -> None:
    endpoint.on("GET /health", status(200, {"jobs": {}, "workers": {"idle": 1}}))
    assert client.health()["workers"] == {"idle": 1}
