"""Jina's documented API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bge_client import JinaClient, errors
from fakes.scripted import Scripted, jina_embeddings, jina_rerank, status, vector_of

TEXTS = ["море", "суша"]
JINA = "jina/jina-embeddings-v3/8"


@pytest.fixture
def endpoint() -> Iterator[Scripted]:
    with Scripted() as endpoint:
        endpoint.on("POST /v1/embeddings", jina_embeddings)
        endpoint.on("POST /v1/rerank", jina_rerank)
        yield endpoint


@pytest.fixture
def jina(endpoint: Scripted) -> Iterator[JinaClient]:
    client = JinaClient("key", base=endpoint.url)
    yield client
    client.close()


def test_jina_requests_and_replies_match_its_documentation(
    jina: JinaClient, endpoint: Scripted
) -> None:
    result = jina.embed(TEXTS, input_type="query")
    assert (result.provider, result.fingerprint) == ("jina", JINA)
    np.testing.assert_array_equal(result.dense, [-vector_of(text) for text in TEXTS])
    (seen,) = endpoint.seen
    assert seen.headers["Authorization"] == "Bearer key"
    assert seen.body == {
        "model": "jina-embeddings-v3",
        "task": "retrieval.query",
        "truncate": True,
        "input": TEXTS,
    }
    ranked = jina.rerank("q", TEXTS, top_n=2)
    assert [document.index for document in ranked] == [1, 0]
    assert [document.document for document in ranked] == ["суша", "море"]
    assert ranked.provider == "jina"


def test_many_texts_go_to_jina_in_batches(jina: JinaClient, endpoint: Scripted) -> None:
    texts = [f"текст {number}" for number in range(300)]
    result = jina.embed(texts)
    np.testing.assert_array_equal(result.dense, [-vector_of(text) for text in texts])
    assert [len(seen.body["input"]) for seen in endpoint.seen] == [128, 128, 44]
    assert result.usage.total_tokens == 9


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (status(401, {"detail": "Invalid API key"}), errors.AuthenticationError),
        (status(402, {"detail": "Account has insufficient balance"}), errors.HTTPStatusError),
        (status(200, {"data": []}), errors.ProtocolError),
        (status(200, {"data": [{"index": 0}]}), errors.ProtocolError),
        (status(200, {"data": [{"index": 1, "embedding": [1.0]}] * 2}), errors.ProtocolError),
    ],
)
def test_jina_errors_are_bge_errors(
    answer: Any, kind: type[errors.BGEError], jina: JinaClient, endpoint: Scripted
) -> None:
    endpoint.on("POST /v1/embeddings", answer)
    with pytest.raises(kind):
        jina.embed(TEXTS)
