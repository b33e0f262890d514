"""OpenAI's bodies and replies, as RunPod's proxy carries them. Its clients: `http/routes`."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest

from bge_worker.engine.engine import Engine
from bge_worker.errors import NotServedError, ValidationError, WorkerError
from bge_worker.serving.openai import OpenAIEmbedBody
from bge_worker.serving.requests import EmbedRequest
from bge_worker.serving.service import Service
from bge_worker.serving.validation import validate
from bge_worker.settings import Settings
from fakes.engine import MODEL
from fakes.serving import TEXTS, answer


def read(body: dict[str, Any], *, accept_token_ids: bool = False) -> EmbedRequest:
    settings = Settings(accept_token_ids=accept_token_ids)
    return validate(body, OpenAIEmbedBody, "body").to_request(MODEL, settings)


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ({"input": "a", "dimensions": 256}, ValidationError, "`dimensions` must be 4"),
        ({"input": "a", "model": "text-embedding-3"}, NotServedError, "Given: `text-embedding-3`"),
        ({"input": []}, ValidationError, "`input` must be a list of length >= 1"),
        ({"input": ""}, ValidationError, "`input` must not be empty"),
        ({"input": ["a", 1]}, ValidationError, "`input[1]` must be a string"),
        ({"input": [[]]}, ValidationError, "`input[0]` must be a string"),
        ({"input": [5, 6]}, ValidationError, "BGE_ACCEPT_TOKEN_IDS=1"),
        ({"input": [[5], ["a"]]}, ValidationError, "Given: token ids"),
    ],
)
def test_a_bad_body_is_refused(body: Any, error: type[WorkerError], message: str) -> None:
    with pytest.raises(error) as caught:
        read(body)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[]], "`input[0]` must hold 1 to 8192 token ids. Given: 0"),
        ([5, 1000], "`input` must hold token ids from 0 to 999. Given: 1000"),
        ([[5], ["a"]], "`input[1]` must hold strings alone or token"),
        ([5] * 9000, "`input` must hold 1 to 8192 token ids. Given: 9000"),
    ],
)
def test_bad_token_ids_are_refused(ids: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        read({"input": ids}, accept_token_ids=True)
    assert message in str(caught.value)


def test_a_body_becomes_a_request_that_is_not_truncated() -> None:
    expected = EmbedRequest(["a"], truncate=False, encoding_format="base64", field="input")
    body = {"input": "a", "encoding_format": "base64", "model": MODEL.model, "dimensions": 4}
    assert read(body | {"user": "u"}) == expected
    assert read({"input": [5, 6]}, accept_token_ids=True).texts == [[5, 6]]
    assert read({"input": [[5], [6]]}, accept_token_ids=True).texts == [[5], [6]]


def test_replies_hold_the_native_vectors(engine: Engine) -> None:
    token_ids = [text.ids for text in engine.encode_texts(TEXTS, 8192)]
    with closing(Service(engine, Settings(accept_token_ids=True))) as service:
        native = answer(service, {"texts": TEXTS})
        for texts in (TEXTS, token_ids):
            payload = {"openai_route": "/v1/embeddings", "openai_input": {"input": texts}}
            reply = answer(service, payload)
            vectors = [item["embedding"] for item in reply["data"]]
            np.testing.assert_allclose(vectors, native["embeddings"], atol=1e-6)
            assert (reply["model"], reply["usage"]) == (native["model"], native["usage"])
        models = answer(service, {"openai_route": "/v1/models"})["data"]
    assert [model["id"] for model in models] == [
        name for m in engine.models.values() for name in (m.model, m.model.split("/")[1])
    ]
