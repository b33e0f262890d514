"""Requests and replies of every host, as its documentation has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bge_client import OpenAICompatible, errors, retry
from bge_client.codec import EmbedOptions
from bge_client.providers.environment import Settings, provider_from
from fakes.hosts import KEY, SHAPES, Host
from fakes.scripted import Scripted, status, vector_of

RERANKERS = [name for name, shape in SHAPES.items() if shape.rerank_model]


def vectors_of(texts: list[str]) -> np.ndarray[Any, Any]:
    return np.stack([vector_of(text) for text in texts])


def provider_of(host: Host, kind: Any = "EMBEDDINGS") -> Any:
    """Return the provider of a router's environment."""
    return provider_from(host.name, Settings(host.env, kind, timeout=10))


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "MIN_PAUSE", 0.001)


@pytest.fixture
def scripted() -> Iterator[tuple[Scripted, OpenAICompatible]]:
    with Scripted() as server:
        provider = OpenAICompatible("host", server.url, embedding_model="m", rerank_model="r")
        yield server, provider
        provider.close()


@pytest.mark.parametrize("name", SHAPES)
def test_texts_are_sent_in_batches_that_a_host_takes(name: str) -> None:
    texts = [f"текст {number}" for number in range(150)]
    with Host(name, vectors_of) as host:
        provider = provider_of(host)
        result = provider.embed(texts, input_type="query")
        provider.close()
        sizes = [len(request["input"]) for request in host.requests]
        assert all(request.keys() == {"model", "input"} for request in host.requests)
    assert (sum(sizes), result.usage.total_tokens) == (150, 150)
    np.testing.assert_allclose(result.dense, vectors_of(texts), atol=1e-6)
    assert result.fingerprint == f"{name}/{host.model}"
    assert (result.provider, result.model) == (name, host.model)


@pytest.mark.parametrize("name", RERANKERS)
def test_documents_are_ranked_and_tokens_counted_by_either_shape_of_a_reply(name: str) -> None:
    documents = ["вода и суша", "море", {"text": "суша"}]
    with Host(name, score=lambda _, texts: [1 / len(text) for text in texts]) as host:
        provider = provider_of(host, "RERANKER")
        ranking = provider.rerank("вода", documents, top_n=2)
        everything = provider.rerank("вода", documents)
        provider.close()
    assert [(d.index, d.document) for d in ranking] == [(1, "море"), (2, "суша")]
    assert len(everything) == 3
    assert (ranking.provider, ranking.usage.total_tokens) == (name, 3)
    assert ranking.fingerprint == f"{name}/{host.rerank_model}"


@pytest.mark.parametrize("name", SHAPES)
def test_a_refusal_has_the_status_and_what_the_host_says_but_no_key(name: str) -> None:
    with Host(name) as host:
        provider = provider_of(host)
        host.failure = 402
        with pytest.raises(errors.HTTPStatusError) as caught:
            provider.embed("море")
        provider.close()
    assert caught.value.status == 402
    assert "HTTP 402: unavailable" in str(caught.value)
    assert KEY not in repr(provider) + repr(caught.value)


def test_a_wrong_key_is_an_authentication_error() -> None:
    with Host("deepinfra") as host:
        provider = OpenAICompatible("deepinfra", host.base, "wrong", embedding_model=host.model)
        with pytest.raises(errors.AuthenticationError):
            provider.embed("море")
        provider.close()


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"data": []},
        {"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}]},
        {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 0.0]}]},
        {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1e300]}]},
        {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [0.0]}]},
        {"data": [{"index": 0, "embedding": "AAAA"}, {"index": 1, "embedding": "AAAA"}]},
    ],
)
def test_a_reply_without_a_vector_for_each_text_is_refused(
    reply: Any, scripted: tuple[Scripted, OpenAICompatible]
) -> None:
    server, provider = scripted
    server.on("POST /embeddings", status(200, reply))
    with pytest.raises(errors.ProtocolError, match="the reply"):
        provider.embed(["море", "суша"])


@pytest.mark.parametrize(
    "counts", [{}, {"usage": None}, {"tokens": {"input_tokens": "3"}}, {"meta": {"tokens": []}}]
)
def test_a_ranking_that_counts_no_tokens_is_a_ranking(
    counts: dict[str, Any], scripted: tuple[Scripted, OpenAICompatible]
) -> None:
    server, provider = scripted
    results = [{"index": 0, "relevance_score": 0.5}]
    server.on("POST /rerank", status(200, {"results": results} | counts))
    assert provider.rerank("q", ["d"]).usage.total_tokens == 0


def test_a_host_has_dense_vectors_alone() -> None:
    provider = OpenAICompatible("host", "http://127.0.0.1:9", rerank_model="r")
    for options in (EmbedOptions(sparse=True), EmbedOptions(colbert=True)):
        with pytest.raises(errors.ConfigurationError, match="host has neither `sparse` nor"):
            provider.embed("море", options=options)
    with pytest.raises(errors.ConfigurationError, match="host has no embedding model"):
        provider.embed("море")
    provider.close()
