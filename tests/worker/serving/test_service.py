"""The contract, field by field, through the front door, on both engines."""

from __future__ import annotations

import asyncio
import base64
import copy
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bge_worker.engine.engine import Engine, PackedEngine
from bge_worker.errors import (
    ForbiddenError,
    HeadTooLargeError,
    InferenceError,
    MalformedError,
    NotServedError,
    OutOfMemoryError,
    OverloadedError,
    SlowBodyError,
    TooLargeError,
    UnauthorizedError,
    ValidationError,
    WorkerError,
)
from bge_worker.serving.payload import answer_payload
from bge_worker.serving.service import Service
from bge_worker.settings import Settings

TEXTS = ["Градиентный спуск ищет минимум функции.", "A transaction is all or nothing."]


def answer(service: Service, payload: object) -> dict[str, Any]:
    reply = asyncio.run(answer_payload(service, payload)).body
    json.dumps(reply, allow_nan=False)  # what the SDK will do with it
    return reply


def refusal(service: Service, payload: object) -> str:
    with pytest.raises(WorkerError) as caught:
        answer(service, payload)
    return str(caught.value)


@pytest.fixture
def limited(engine: Engine) -> Iterator[Any]:
    """Services with limits of the test's own."""
    made: list[Service] = []

    def make(**limits: Any) -> Service:
        made.append(Service(engine, replace(Settings(), **limits)))
        return made[-1]

    yield make
    for service in made:
        service.close(timeout=10)


def test_embedding_reply_has_what_was_asked_for_and_nothing_else(service: Service) -> None:
    reply = answer(service, {"texts": TEXTS})
    assert [*reply] == [
        *(
            "model",
            "fingerprint",
            "embeddings",
            "dimensions",
            "usage",
            "truncated",
            "input_digest",
            "timings_ms",
        )
    ]
    assert reply["dimensions"] == 512
    assert np.linalg.norm(reply["embeddings"], axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert all(round(x, 7) == x for x in reply["embeddings"][0])
    assert reply["usage"]["prompt_tokens"] == reply["usage"]["total_tokens"] > 10
    assert reply["truncated"] == []
    assert [*reply["timings_ms"]] == ["queue", "tokenize", "inference"]
    sparse = answer(service, {"texts": TEXTS, "return_dense": False, "return_sparse": True})
    assert "embeddings" not in sparse
    assert "dimensions" not in sparse


def test_one_string_in_gives_lists_of_one_out(service: Service) -> None:
    everything = {"return_sparse": True, "return_colbert": True}
    one = answer(service, {"texts": TEXTS[0], **everything})
    two = answer(service, {"texts": TEXTS, **everything})
    assert len(one["embeddings"]) == len(one["sparse_embeddings"]) == 1
    np.testing.assert_allclose(one["embeddings"][0], two["embeddings"][0], atol=2e-6)
    tokens = one["usage"]["prompt_tokens"]
    assert np.shape(one["colbert_embeddings"]) == (1, tokens - 1, 512)


def test_sparse_vectors_are_what_qdrant_takes(service: Service) -> None:
    reply = answer(service, {"texts": ["море море <unk> </s> суша", "x"], "return_sparse": True})
    for vector in reply["sparse_embeddings"]:
        assert vector["indices"] == sorted(set(vector["indices"]))
        assert len(vector["indices"]) == len(vector["values"])
        assert all(value > 0 for value in vector["values"])
        assert not {0, 1, 2, 3} & set(vector["indices"])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-7), ("float16", 1e-3)])
def test_base64_holds_the_same_numbers(service: Service, dtype: str, tolerance: float) -> None:
    asked = {"texts": TEXTS, "return_colbert": True}
    floats = answer(service, asked)
    packed = answer(service, {**asked, "encoding_format": "base64", "dtype": dtype})
    for text in range(2):
        dense = np.frombuffer(base64.b64decode(packed["embeddings"][text]), np.dtype(dtype))
        np.testing.assert_allclose(dense, floats["embeddings"][text], atol=tolerance)
        colbert = packed["colbert_embeddings"][text]
        vectors = np.frombuffer(base64.b64decode(colbert["data"]), np.dtype(dtype))
        np.testing.assert_allclose(
            vectors.reshape(colbert["shape"]), floats["colbert_embeddings"][text], atol=tolerance
        )


def test_a_long_text_is_cut_and_named_or_refused(service: Service) -> None:
    texts = ["a", "слово " * 50, "b"]
    reply = answer(service, {"texts": texts, "max_length": 16})
    assert reply["truncated"] == [1]
    assert reply["usage"]["prompt_tokens"] <= 3 * 16
    message = refusal(service, {"texts": texts, "max_length": 16, "truncate": False})
    assert message.startswith("ValidationError: `texts[1]` has ")
    assert "tokens with special tokens; `max_length` is 16 and `truncate` is false" in message


def test_rerank_reply_is_sorted_and_points_into_documents(service: Service) -> None:
    query, documents = "градиентный спуск", ["История Рима", TEXTS[0], "Спуск с горы"]
    reply = answer(service, {"query": query, "documents": documents, "return_documents": True})
    assert [*reply] == [
        *("model", "fingerprint", "results", "usage", "truncated", "input_digest", "timings_ms")
    ]
    assert [result["index"] for result in reply["results"]] == [1, 2, 0]
    scores = [result["relevance_score"] for result in reply["results"]]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[2] < 0.5 < scores[0] < 1
    assert reply["results"][0]["document"] == {"text": documents[1]}
    raw = answer(service, {"query": query, "documents": documents, "raw_scores": True})
    logits = np.array([result["relevance_score"] for result in raw["results"]])
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), scores, atol=1e-6)
    first = answer(service, {"query": query, "documents": documents, "top_n": 1})
    assert [result["index"] for result in first["results"]] == [1]
    assert "document" not in first["results"][0]


def test_equal_scores_keep_the_order_of_documents(service: Service) -> None:
    documents = [{"text": text} for text in ("море", "суша", "море", "суша", "море")]
    reply = answer(service, {"query": "море", "documents": documents})
    assert [result["index"] for result in reply["results"]] == [0, 2, 4, 1, 3]


def test_a_long_pair_is_cut_and_named_or_refused(service: Service) -> None:
    work = {"query": "море", "documents": ["суша", "слово " * 50], "max_length": 20}
    assert answer(service, work)["truncated"] == [1]
    message = refusal(service, work | {"truncate": False})
    assert "`documents[1]` has " in message
    assert "with `query` and special tokens; `max_length` is 20" in message


def test_a_reply_holds_the_digest_of_its_input(service: Service) -> None:
    def digest(*texts: str) -> str:  # as the contract has it
        framed = (len(text.encode()).to_bytes(8, "little") + text.encode() for text in texts)
        return hashlib.sha256(b"".join(framed)).hexdigest()[:16]

    assert answer(service, {"texts": "море"})["input_digest"] == digest("море")
    reply = answer(service, {"query": "море", "documents": ["суша", {"text": "a"}]})
    assert reply["input_digest"] == digest("море", "суша", "a")


def test_info_tells_what_is_loaded_and_within_which_limits(service: Service) -> None:
    info = answer(service, {"info": True})
    assert info["models"]["embed"]["width"] == 512
    assert info["models"]["rerank"]["fingerprint"] != info["models"]["embed"]["fingerprint"]
    assert info["engine"] in ("packed", "flagembedding")
    assert info["device"] == "cpu"
    assert info["attention"]
    assert info["attention_reason"]
    assert info["limits"]["max_texts"] == 2048
    assert {"torch", "python", "bge-serverless"} <= set(info["versions"])


# ------------------------------------------------------------------------ OpenAI


@pytest.fixture
def client(service: Service) -> openai.OpenAI:
    return openai_client(service)


@pytest.fixture
def accepting(engine: Engine) -> Iterator[openai.OpenAI]:
    """The client of a worker that accepts token ids."""
    service = Service(engine, Settings(accept_token_ids=True))
    yield openai_client(service)
    service.close(timeout=10)


def openai_client(service: Service) -> openai.OpenAI:
    """OpenAI's own client, its requests carried as RunPod's proxy carries them."""

    def carry(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        payload = {"openai_route": request.url.path, "openai_input": body}
        try:
            return httpx.Response(200, json=answer(service, payload))
        except WorkerError as error:
            return httpx.Response(error.status, json={"error": {"message": str(error)}})

    transport = httpx.MockTransport(carry)
    return openai.OpenAI(
        base_url="http://worker/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx.Client(transport=transport),
    )


def test_openai_s_client_gets_the_native_vectors(
    service: Service, client: openai.OpenAI, engine: Engine
) -> None:
    model = engine.models["embed"].model
    native = answer(service, {"texts": TEXTS})
    by_default = client.embeddings.create(model=model, input=TEXTS)  # base64 under the hood
    as_floats = client.embeddings.create(model=model, input=TEXTS, encoding_format="float")
    for reply in (by_default, as_floats):
        vectors = [item.embedding for item in reply.data]
        np.testing.assert_allclose(vectors, native["embeddings"], atol=1e-6)
        assert reply.usage.prompt_tokens == native["usage"]["prompt_tokens"]
    assert [listed.id for listed in client.models.list()] == [
        one.model for one in engine.models.values()
    ]


def test_token_ids_are_this_model_s_own_where_they_are_accepted(
    accepting: openai.OpenAI, engine: Engine
) -> None:
    model = engine.models["embed"].model
    framed = [one.ids for one in engine.encode_texts(TEXTS, 8192)]
    bare = [ids[1:-1] for ids in framed]
    by_text = accepting.embeddings.create(model=model, input=TEXTS)
    for ids in (framed, bare):
        by_ids = accepting.embeddings.create(model=model, input=ids)
        for one, other in zip(by_text.data, by_ids.data, strict=True):
            np.testing.assert_allclose(one.embedding, other.embedding, atol=1e-6)
    single = accepting.embeddings.create(model=model, input=bare[0])
    assert len(single.data) == 1
    for ids, message in (
        ([[]], "`input[0]` must hold 1 to 8192 token ids. Given: 0"),
        ([5, 10**9], "Given: 1000000000"),
        ([[5], ["a"]], "`input[1]` must hold strings alone or token"),
        ([5] * 9000, "`input` must hold 1 to 8192 token ids"),
    ):
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            accepting.embeddings.create(model=model, input=ids)  # type: ignore[arg-type]
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"dimensions": 256}, openai.UnprocessableEntityError, "`dimensions` must be 512"),
        ({"model": "text-embedding-3"}, openai.NotFoundError, "Given: `text-embedding-3`"),
        ({"input": []}, openai.UnprocessableEntityError, "`input` must not be empty"),
        ({"input": [5, 10**9]}, openai.UnprocessableEntityError, "BGE_ACCEPT_TOKEN_IDS=1"),
        ({"input": [[5], ["a"]]}, openai.UnprocessableEntityError, "Given: token ids"),
        ({"input": [[]]}, openai.UnprocessableEntityError, "`input[0]` must be a string"),
        ({"input": "море " * 9000}, openai.UnprocessableEntityError, "`max_length` is 8192"),
        ({"input": ["a", 1]}, openai.UnprocessableEntityError, "`input[1]` must be a string"),
        ({"input": ""}, openai.UnprocessableEntityError, "`input` must not be empty"),
    ],
)
def test_openai_s_client_raises_its_own_errors(
    client: openai.OpenAI, engine: Engine, change: Any, kind: type[Exception], message: str
) -> None:
    asked = {"model": engine.models["embed"].model, "input": TEXTS} | change
    with pytest.raises(kind) as caught:
        client.embeddings.create(**asked)
    assert message in str(caught.value)


# ------------------------------------------------------------------------ refusals


def test_another_openai_route_is_refused(service: Service) -> None:
    message = refusal(service, {"openai_route": "/v1/chat/completions", "openai_input": {}})
    assert 'must be /v1/embeddings or /v1/models. Given: "/v1/chat/completions"' in message
    assert "`openai_input` must be an object. Given: null" in refusal(
        service, {"openai_route": "/v1/embeddings"}
    )


def test_too_many_tokens_are_refused_with_what_would_fit(limited: Any) -> None:
    message = refusal(limited(max_request_tokens=10), {"texts": ["море"] * 5})
    assert message == (
        "TooLargeError: `texts` must hold at most 10 tokens (`BGE_MAX_REQUEST_TOKENS`). "
        "Given: 25 in the first 5 of 5 texts. The first 2 would fit"
    )


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"encoding_format": "base64"},
        {"return_dense": False, "return_sparse": True},
        {"return_dense": False, "return_colbert": True},
        {"return_colbert": True, "encoding_format": "base64", "dtype": "float16"},
    ],
    ids=lambda asked: "-".join(asked) or "default",
)
def test_a_reply_too_large_is_refused_and_what_fits_is_within_the_limit(
    limited: Any, asked: dict[str, Any]
) -> None:
    limit = 300_000
    service = limited(max_reply_bytes=limit)
    texts = ["длинный учебный текст о море и суше " * 2] * 2000
    message = refusal(service, {"texts": texts, **asked})
    assert message.startswith(
        "TooLargeError: the reply to `texts` must be at most 300000 bytes (`BGE_MAX_REPLY_BYTES`)"
    )
    fit = int(message.split("The first ")[1].split(" of ")[0])
    assert 0 < fit < 2000
    reply = answer(service, {"texts": texts[:fit], **asked})
    assert limit / 3 < len(json.dumps(reply, ensure_ascii=False).encode()) <= limit


def test_openai_s_reply_stays_within_the_limit_too(limited: Any, engine: Engine) -> None:
    service = limited(max_reply_bytes=100_000)
    body = {"model": engine.models["embed"].model, "encoding_format": "base64"}
    asked = {"openai_route": "/v1/embeddings", "openai_input": body | {"input": ["a"] * 500}}
    fit = int(refusal(service, asked).split("The first ")[1].split(" of ")[0])
    reply = answer(service, asked | {"openai_input": body | {"input": ["a"] * fit}})
    assert len(json.dumps(reply)) <= 100_000


def test_a_text_that_is_too_large_alone_is_told_what_would_help(limited: Any) -> None:
    asked = {"texts": "слово " * 500, "return_colbert": True}
    message = refusal(limited(max_reply_bytes=65_536), asked)
    assert message.endswith("lower `max_length`, or request fewer outputs or base64")


def test_documents_sent_back_count_towards_the_reply(limited: Any) -> None:
    work = {"query": "море", "documents": ['"\n' * 5000] * 9, "return_documents": True}
    message = refusal(limited(max_reply_bytes=65_536), work)
    assert message.endswith("With `top_n` 3 it would fit")
    reply = answer(limited(max_reply_bytes=65_536), work | {"top_n": 3})
    assert 50_000 < len(json.dumps(reply)) < 65_536
    answer(limited(max_reply_bytes=65_536), work | {"return_documents": False})


def test_a_model_that_is_not_loaded_is_not_served(engine: Engine) -> None:
    rerank_only = copy.copy(engine)
    rerank_only.models = {"rerank": engine.models["rerank"]}
    service = Service(rerank_only, Settings())
    with pytest.raises(NotServedError, match="loads no model to embed: `BGE_EMBED_MODEL` is empty"):
        answer(service, {"texts": "a"})
    answer(service, {"query": "a", "documents": ["a"]})
    service.close(timeout=10)


def test_the_error_table_of_the_contract() -> None:
    table = {
        ValidationError: (422, False),
        TooLargeError: (413, False),
        NotServedError: (404, False),
        OverloadedError: (429, True),
        OutOfMemoryError: (503, True),
        InferenceError: (500, True),
    }
    of_http_alone = {
        MalformedError: (400, False),
        UnauthorizedError: (401, False),
        ForbiddenError: (403, False),
        SlowBodyError: (408, True),
        HeadTooLargeError: (431, False),
    }
    known = {kind: (kind.status, kind.retry) for kind in WorkerError.__subclasses__()}
    assert known == table | of_http_alone


# -------------------------------------------------------------------------- faults


def test_what_cannot_be_computed_is_an_error_with_an_id_that_the_log_repeats(
    packed: PackedEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no vectors for: совершенно секретно")

    service = Service(packed, Settings())
    monkeypatch.setattr(packed, "run", broken)
    message = refusal(service, {"texts": "совершенно секретно"})
    service.close(timeout=10)
    assert message.startswith("InferenceError: the request could not be computed")
    assert message.split()[-1] in caplog.text
    assert "секретно" not in message + caplog.text
    assert "/" not in message + caplog.text


def test_the_fitness_check_passes_and_notices_a_broken_device(
    packed: PackedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(packed, Settings(max_reply_bytes=65536))  # the least that can be set
    asyncio.run(service.check())
    whole = packed.run
    monkeypatch.setattr(
        packed,
        "run",
        lambda outputs, texts: [
            one if isinstance(one, float) else one._replace(dense=one.dense * 2)
            for one in whole(outputs, texts)
        ],
    )
    with pytest.raises(RuntimeError, match="not of length one"):
        asyncio.run(service.check())
    service.close(timeout=10)


def test_the_fitness_check_knows_what_the_published_weights_answer(
    packed: PackedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bge_worker.serving.fitness.is_published", lambda model: True)
    service = Service(packed, Settings())
    with pytest.raises(RuntimeError, match=r"dense cosine: published 0\.6265, computed"):
        asyncio.run(service.check())  # the miniature is not bge-m3
    service.close(timeout=10)


SECRET = "тайна7f3a"
TEXT = st.text(st.characters(), max_size=20).map(lambda text: text + SECRET)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 40) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
PAYLOADS = st.fixed_dictionaries(
    {},
    optional={
        "texts": TEXT | st.lists(TEXT, max_size=3) | VALUES,
        "query": TEXT | VALUES,
        "documents": st.lists(TEXT | st.fixed_dictionaries({"text": TEXT}), max_size=3) | VALUES,
        **dict.fromkeys(
            ("return_dense", "return_sparse", "return_colbert", "raw_scores", "truncate"),
            st.booleans() | VALUES,
        ),
        "max_length": st.integers(0, 40) | VALUES,
        "top_n": VALUES,
        "info": st.booleans() | VALUES,
        "encoding_format": st.sampled_from(["float", "base64"]) | st.integers(),
        "dtype": st.sampled_from(["float16", "float32"]) | st.none(),
        "unknown \ud800": VALUES,
        "openai_route": st.sampled_from(["/v1/embeddings", "/v1/models"]) | VALUES,
        "openai_input": st.fixed_dictionaries({"model": TEXT, "input": VALUES}) | VALUES,
    },
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(PAYLOADS)
def test_any_payload_gives_a_reply_or_a_typed_error_and_nothing_leaks(
    service: Service, caplog: pytest.LogCaptureFixture, payload: dict[str, Any]
) -> None:
    caplog.set_level(logging.DEBUG, logger="bge_worker")
    try:
        answer(service, payload)
    except InferenceError as error:
        raise AssertionError(f"a bug: {error}") from error
    except WorkerError as error:
        # The one value that is said again is a wrong name of a model or a route.
        named = ("`model` must be", "`openai_route` must be")
        assert SECRET not in str(error) or any(start in str(error) for start in named)
    assert SECRET not in caplog.text
