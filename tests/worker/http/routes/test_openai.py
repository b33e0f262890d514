"""OpenAI's own client and LangChain's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings

from bge_worker.engine.engine import Engine
from bge_worker.settings import Settings
from fakes.serving import EMBED_MODEL, KEY, RERANK_MODEL, TEXTS, serving


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_openai(client: openai.OpenAI, vectors: list[list[float]]) -> None:
    by_default = client.embeddings.create(model=EMBED_MODEL, input=TEXTS)  # asks for base64
    floats = client.embeddings.create(model=EMBED_MODEL, input=TEXTS, encoding_format="float")
    for reply in (by_default, floats):
        assert [item.index for item in reply.data] == [0, 1]
        got = [item.embedding for item in reply.data]
        np.testing.assert_allclose(got, vectors, atol=6e-8)
    assert by_default.usage.total_tokens > 10
    assert [model.id for model in client.models.list()] == [
        *(EMBED_MODEL, "bge-m3"),
        *(RERANK_MODEL, "bge-reranker-v2-m3"),
    ]


def test_openai_with_token_ids(packed: Engine, vectors: list[list[float]]) -> None:
    ids = [text.ids for text in packed.encode_texts(TEXTS, 8192)]
    with (
        serving(packed, Settings(accept_token_ids=True)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key=KEY) as client,
    ):
        reply = client.embeddings.create(model=EMBED_MODEL, input=ids, encoding_format="float")
    assert [item.embedding for item in reply.data] == vectors


def test_openai_raises_its_own_errors(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.BadRequestError, match=r"`input\[1\]` must not be empty"):
        client.embeddings.create(model=EMBED_MODEL, input=["a", ""])
    with pytest.raises(openai.NotFoundError, match="one of `miniature/bge-m3`, `bge-m3`"):
        client.embeddings.create(model="text-embedding-3-small", input="a")
    with pytest.raises(openai.BadRequestError, match="`dimensions` must be 512"):
        client.embeddings.create(model=EMBED_MODEL, input="a", dimensions=256)
    stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="another", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError, match="Given: a wrong key"):
        stranger.embeddings.create(model=EMBED_MODEL, input="a")


def test_langchain(url: str, vectors: list[list[float]]) -> None:
    embeddings = OpenAIEmbeddings(
        base_url=f"{url}/v1",
        api_key=KEY,
        model=EMBED_MODEL,
        check_embedding_ctx_length=False,  # it would cut with OpenAI's tokenizer
    )
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), vectors, atol=6e-8)
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[0]), vectors[0], atol=1e-5)


def test_langchain_by_default_sends_token_ids_of_another_model_and_is_told(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Encoding:  # tiktoken's own is downloaded
        def encode_ordinary(self, text: str) -> list[int]:
            return list(text.encode())

    monkeypatch.setattr("tiktoken.encoding_for_model", lambda _: Encoding())
    embeddings = OpenAIEmbeddings(base_url=f"{url}/v1", api_key=KEY, model=EMBED_MODEL)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        embeddings.embed_documents(TEXTS)


def test_fields_of_other_servers_clients_are_honoured_or_refused(
    url: str, vectors: list[list[float]]
) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}

    def post(**fields: Any) -> httpx.Response:
        return httpx.post(f"{url}/v1/embeddings", json={"input": TEXTS} | fields, headers=headers)

    jina = post(input=[{"text": text} for text in TEXTS], task="retrieval.query", user="u", z=1)
    assert [item["embedding"] for item in jina.json()["data"]] == vectors
    assert jina.headers["x-ignored-fields"] == "z"
    bits = post(embedding_type="ubinary").json()["data"][0]["embedding"]
    assert bits == np.packbits(np.array(vectors[0]) > 0).tolist()
    raw = np.array(post(normalize=False).json()["data"][0]["embedding"])
    assert np.linalg.norm(raw) != pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(raw / np.linalg.norm(raw), vectors[0], atol=1e-6)
    assert post(input="море " * 9000).status_code == 400
    assert post(input="море " * 9000, truncate_prompt_tokens=-1).status_code == 200
    extra = post(return_sparse=True, return_colbert=True).json()["data"][0]
    assert extra["sparse_embedding"]["indices"]
    assert len(extra["colbert_embedding"][0]) == 512
    for field, value in (("late_chunking", True), ("modality", "image"), ("dimensions", 8)):
        refused = post(**{field: value})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == field
        assert refused.json()["detail"] == refused.json()["error"]["message"]  # for Jina's clients
