"""The `input` of a job: it becomes a request and a reply, or an error that shows no text."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bge_worker.errors import InferenceError, ValidationError, WorkerError
from bge_worker.serving.payload import InfoBody, OpenAIPayload, read_payload
from bge_worker.serving.requests import EmbedRequest, RerankRequest
from bge_worker.serving.service import Service
from bge_worker.settings import Settings
from fakes.engine import ALL_VECTORS, MODEL
from fakes.serving import answer, refusal


def request_of(payload: Any) -> object:
    return read_payload(payload).to_request(MODEL, Settings())


def test_a_payload_becomes_the_request_it_describes() -> None:
    assert request_of({"texts": "a"}) == EmbedRequest(["a"])
    outputs = {"return_sparse": True, "return_colbert": True}
    options = {"max_length": 9, "truncate": False, "encoding_format": "base64"}
    assert request_of({"texts": ["a"], **outputs, **options}) == (
        EmbedRequest(["a"], ALL_VECTORS, **options)
    )
    rerank = {"query": "q", "documents": ["a", {"text": "b"}]}
    assert request_of(rerank | {"top_n": 1}) == RerankRequest("q", ["a", "b"], top_n=1)
    nulls = dict.fromkeys(("top_n", "raw_scores", "max_length", "truncate", "unknown"))
    assert request_of(rerank | nulls) == RerankRequest("q", ["a", "b"])
    assert read_payload({"info": True}) == InfoBody(info=True)
    assert read_payload({"openai_route": "/v1/models"}) == OpenAIPayload(openai_route="/v1/models")


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ([], "`input` must be an object. Given: a list"),
        (None, "`input` must be an object. Given: null"),
        ({}, "Given: no field"),
        ({"text": "a"}, "Given: `text`"),
        ({"texts": None}, "Given: no field"),
        ({"texts": "a", "query": "b"}, "Given: `texts`, `query`"),
        ({"documents": ["a"]}, "Given: `documents`"),
    ],
)
def test_a_payload_without_exactly_one_task_is_refused(payload: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        read_payload(payload)
    assert message in str(caught.value)


def test_an_unknown_openai_route_is_refused(packed_service: Service) -> None:
    message = refusal(packed_service, {"openai_route": "/v1/chat/completions", "openai_input": {}})
    assert 'must be /v1/embeddings or /v1/models. Given: "/v1/chat/completions"' in message
    message = refusal(packed_service, {"openai_route": "/v1/embeddings"})
    assert "`openai_input` must be an object. Given: null" in message
    assert "`info` must be true. Given: false" in refusal(packed_service, {"info": False})


SECRET = "тайна7f3a"  # in every generated text
TEXT = st.text(st.characters(), max_size=20).map(lambda text: text + SECRET)
KEYS = st.sampled_from(["texts", "query", "documents", "text", "info", "top_n", "openai_route"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 40) | st.integers() | st.floats() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS | st.text(st.characters(), max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
PAYLOADS = st.fixed_dictionaries(
    {},
    optional={
        "texts": TEXT | st.lists(TEXT, max_size=3) | JSON,
        "query": TEXT | JSON,
        "documents": st.lists(TEXT | st.fixed_dictionaries({"text": TEXT}), max_size=3) | JSON,
        **dict.fromkeys(
            ("return_dense", "return_sparse", "return_colbert", "raw_scores", "truncate"),
            st.booleans() | JSON,
        ),
        "max_length": st.integers(0, 40) | JSON,
        "top_n": JSON,
        "info": st.booleans() | JSON,
        "encoding_format": st.sampled_from(["float", "base64"]) | JSON,
        "dtype": st.sampled_from(["float16", "float32"]) | JSON,
        "unknown \ud800": JSON,
        "openai_route": st.sampled_from(["/v1/embeddings", "/v1/models"]) | JSON,
        "openai_input": st.fixed_dictionaries({"model": TEXT, "input": JSON}) | JSON,
    },
)
# Messages that repeat a value: a wrong keyword or name.
QUOTING = tuple(
    f"`{field}` must be" for field in ("model", "openai_route", "encoding_format", "dtype")
)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(PAYLOADS | JSON)
def test_any_payload_gives_a_reply_or_an_error_that_shows_no_text(
    packed_service: Service, caplog: pytest.LogCaptureFixture, payload: Any
) -> None:
    caplog.set_level(logging.DEBUG, logger="bge_worker")
    try:
        answer(packed_service, payload)
    except InferenceError as error:
        raise AssertionError(f"a bug: {error}") from error
    except WorkerError as error:
        message = str(error)
        assert SECRET not in message or any(start in message for start in QUOTING)
        message.encode()  # no lone surrogate
    assert SECRET not in caplog.text
