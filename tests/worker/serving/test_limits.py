"""Limits that only token counts show; a reply that is accepted stays within its limit."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from bge_worker.engine.engine import Engine
from bge_worker.engine.outputs import Outputs
from bge_worker.engine.tokenizer import Encoded
from bge_worker.errors import TooLargeError, ValidationError, WorkerError
from bge_worker.serving.limits import Limits
from bge_worker.serving.requests import EmbedRequest, RerankRequest
from bge_worker.serving.service import Service
from bge_worker.settings import Settings
from fakes.engine import MODEL
from fakes.serving import answer, refusal

TRUNCATED = [Encoded([0] * 5, 5), Encoded([0] * 16, 52)]
EMBED = EmbedRequest(["a"] * 5, max_length=16, truncate=False)
RERANK = RerankRequest("q", ["a", "b"], max_length=16, truncate=False)


@pytest.mark.parametrize(
    ("inference_request", "encoded", "settings", "error", "message"),
    [
        (EMBED, TRUNCATED, {}, ValidationError, "`texts[1]` has 52 tokens with special tokens; `"),
        (RERANK, TRUNCATED, {}, ValidationError, "`documents[1]` has 52 tokens with `query` and"),
        (
            EMBED,
            [Encoded([0] * 5, 5)] * 3,
            {"max_request_tokens": 10},
            TooLargeError,
            "Given: 15 in the first 3 of 5 texts. The first 2 would fit",
        ),
        (
            EMBED,
            [Encoded([0] * 11, 11)],
            {"max_request_tokens": 10},
            TooLargeError,
            "`texts` must hold at most 10 tokens (`BGE_MAX_REQUEST_TOKENS`). Given: 11",
        ),
        (
            EmbedRequest(["a"], Outputs.COLBERT),
            [Encoded([0] * 999, 999)],
            {"max_reply_bytes": 10_000},
            TooLargeError,
            "Not one would fit: lower `max_length`",
        ),
    ],
    ids=["long text", "long pair", "many tokens", "one large text", "large reply"],
)
def test_a_request_over_a_limit_is_refused(
    inference_request: Any, encoded: Any, settings: Any, error: type[WorkerError], message: str
) -> None:
    limits = Limits({"embed": MODEL, "rerank": MODEL}, Settings(**settings))
    with pytest.raises(error) as caught:
        limits.check(inference_request, encoded)
    assert message in str(caught.value)


def embed_payload(**fields: Any) -> Callable[[list[str]], dict[str, Any]]:
    return lambda texts: {"texts": texts} | fields


def openai_payload(texts: list[str]) -> dict[str, Any]:
    body = {"input": texts, "encoding_format": "base64"}
    return {"openai_route": "/v1/embeddings", "openai_input": body}


@pytest.mark.parametrize(
    "payload",
    [
        embed_payload(),
        embed_payload(encoding_format="base64"),
        embed_payload(return_dense=False, return_sparse=True),
        embed_payload(return_dense=False, return_colbert=True),
        embed_payload(return_colbert=True, encoding_format="base64", dtype="float16"),
        openai_payload,
    ],
    ids=["dense", "base64", "sparse", "colbert", "float16", "openai"],
)
def test_as_many_texts_as_the_message_names_fit_the_limit(packed: Engine, payload: Any) -> None:
    limit = 300_000
    texts = ["длинный учебный текст о море и суше " * 2] * 2000
    with closing(Service(packed, Settings(max_reply_bytes=limit))) as service:
        message = refusal(service, payload(texts))
        assert "must be at most 300000 bytes (`BGE_MAX_REPLY_BYTES`)" in message
        count = int(message.split("The first ")[1].split(" of ")[0])
        reply = answer(service, payload(texts[:count]))
    assert limit / 3 < len(json.dumps(reply, ensure_ascii=False).encode()) <= limit


def test_returned_documents_count_towards_the_reply(packed: Engine) -> None:
    payload = {"query": "море", "documents": ['"\n' * 800] * 9, "return_documents": True}
    with closing(Service(packed, Settings(max_reply_bytes=12_000))) as service:
        assert refusal(service, payload).endswith("With `top_n` 3 it would fit")
        reply = answer(service, payload | {"top_n": 3})
        assert 9000 < len(json.dumps(reply)) < 12_000
        answer(service, payload | {"return_documents": False})
