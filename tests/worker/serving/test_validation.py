"""Bad input gets an error that names the field, the limit and what was given; never the text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_worker.engine.config import ModelInfo
from bge_worker.engine.outputs import Outputs
from bge_worker.errors import ValidationError
from bge_worker.serving.payload import InfoBody, OpenAIPayload, read_payload
from bge_worker.serving.requests import EmbedRequest, RerankRequest
from bge_worker.settings import Settings

MODEL = ModelInfo("model", None, "f" * 16, 4, 1000, 8192)


def parse(payload: object, max_texts: int) -> object:
    body = read_payload(payload)
    if isinstance(body, InfoBody | OpenAIPayload):
        return body
    return body.to_request(MODEL, Settings(max_texts=max_texts))


REFUSED: list[tuple[Any, str]] = [
    ([], "`input` must be an object. Given: a list"),
    (None, "`input` must be an object. Given: null"),
    ({}, "Given: no field"),
    ({"text": "a"}, "Given: `text`"),
    ({"texts": "a", "query": "b"}, "one of `texts` (to embed), `query`"),
    ({"documents": ["a"]}, "`query` with `documents` (to rerank)"),
    ({"texts": []}, "`texts` must not be empty. Given: an empty list"),
    ({"texts": ["a"] * 5}, "`texts` must hold 1 to 4 texts (`BGE_MAX_TEXTS`). Given: 5"),
    ({"texts": None}, "Given: no field"),
    ({"texts": {"a": "b"}}, "Given: an object"),
    ({"texts": ["a", 7]}, "`texts[1]` must be a string. Given: an integer"),
    ({"texts": ["a", " \n\u3000"]}, "`texts[1]` must not be empty or blank"),
    ({"texts": ""}, "`texts` must not be empty or blank. Given: an empty string"),
    ({"texts": ["ab\ud800"]}, "`texts[0]` must be valid Unicode. Given: a lone surrogate at"),
    ({"texts": "a", "colour": 1}, "unknown field `colour`. Known here: `texts`, `return_dense`"),
    ({"texts": "a", "return_dense": False}, "must be true. Given: all false"),
    ({"texts": "a", "return_dense": 1}, "`return_dense` must be true or false. Given: an integer"),
    ({"texts": "a", "max_length": 2}, "`max_length` must be an integer, from 3 to 8192. Given: 2"),
    (
        {"texts": "a", "max_length": 8193},
        "an integer, from 3 to 8192. Given: 8193",
    ),
    ({"texts": "a", "max_length": True}, "`max_length` must be an integer, from 3 to 8192"),
    ({"texts": "a", "max_length": 10**400}, "`max_length` must be an integer, from 3 to 8192"),
    ({"texts": "a", "truncate": "yes"}, "`truncate` must be true or false. Given: a string"),
    ({"texts": "a", "encoding_format": "hex"}, 'must be one of "base64", "float". Given: "hex"'),
    ({"texts": "a", "dtype": 1}, 'must be one of "float16", "float32". Given: an integer'),
    ({"query": "q"}, "`documents` is required"),
    (
        {"query": "q", "documents": "d"},
        "`documents` must be a list of strings or objects with `text`",
    ),
    ({"query": "q", "documents": []}, "`documents` must not be empty. Given: an empty list"),
    ({"query": "", "documents": ["d"]}, "`query` must not be empty or blank"),
    ({"query": ["q"], "documents": ["d"]}, "`query` must be a string. Given: a list"),
    (
        {"query": "q", "documents": [{"txt": "d"}]},
        "unknown field `documents[0].txt`. Known",
    ),
    ({"query": "q", "documents": [{"text": 1}]}, "`documents[0].text` must be a string"),
    (
        {"query": "q", "documents": ["d"], "top_n": 0},
        "an integer, at least 1. Given: 0",
    ),
    ({"query": "q", "documents": ["d"], "max_length": 16}, "from 17 to 8192. Given: 16"),
    ({"info": True, "x": 1}, "unknown field `x`. Known here: `info`"),
    ({"openai_route": 1}, "`openai_route` must be a string"),
]


@pytest.mark.parametrize(("payload", "message"), REFUSED)
def test_bad_payload_is_refused_by_name(payload: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(payload, max_texts=4)
    assert message in str(caught.value)
    assert str(caught.value).startswith("ValidationError: ")


def test_payload_becomes_the_request_it_describes() -> None:
    assert parse({"texts": "a"}, 9) == EmbedRequest(["a"])
    everything = {"return_sparse": True, "return_colbert": True, "max_length": 9, "truncate": False}
    assert parse({"texts": ["a"], **everything, "encoding_format": "base64"}, 9) == EmbedRequest(
        ["a"],
        Outputs.DENSE | Outputs.SPARSE | Outputs.COLBERT,
        max_length=9,
        truncate=False,
        encoding_format="base64",
    )
    assert parse({"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1}, 9) == (
        RerankRequest("q", ["a", "b"], top_n=1)
    )
    nulls = dict.fromkeys(("top_n", "raw_scores", "max_length", "truncate", "nothing"))
    assert parse({"query": "q", "documents": ["a"], **nulls}, 9) == RerankRequest("q", ["a"])
    assert parse({"info": True}, 9) == InfoBody(info=True)
    assert parse({"openai_route": "/v1/models"}, 9) == OpenAIPayload(openai_route="/v1/models")


FIELDS = [
    *("texts", "return_dense", "return_sparse", "return_colbert", "max_length", "truncate"),
    *("encoding_format", "dtype", "query", "documents", "top_n", "raw_scores", "info"),
    *("return_documents", "openai_route", "openai_input", "text"),
]
SECRET = "тайна-7f3a"  # stands in every generated text, and may stand in no message
TEXTS = st.text(st.characters(), max_size=8).map(lambda text: text + SECRET)
KEYS = st.sampled_from(FIELDS) | st.text(st.characters(), max_size=5)  # with lone surrogates
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.just(""),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(KEYS, JSON, max_size=5) | JSON)
def test_any_json_is_a_request_or_a_typed_error_that_keeps_texts_to_itself(payload: Any) -> None:
    try:
        parse(payload, max_texts=4)
    except ValidationError as error:
        # The one value that is said again is a wrong keyword.
        named = ("`encoding_format` must be", "`dtype` must be")
        assert SECRET not in str(error) or any(start in str(error) for start in named)
        json.dumps(str(error), ensure_ascii=False).encode()  # can be sent as it is
