from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_qdrant import QdrantVectorStore, RetrievalMode
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
)
from langchain_tests.unit_tests import EmbeddingsUnitTests
from qdrant_client import models

from bge_client import AsyncClient, Client, FingerprintError, ValidationError
from bge_retrieval import AsyncHybridSearch, HybridSearch
from bge_retrieval.integrations.langchain import (
    BGEEmbeddings,
    BGEHybridRetriever,
    BGEReranker,
    BGESparseEmbeddings,
)

TEXTS = ["A transaction is all or nothing.", "Градиентный спуск ищет минимум функции."]
QUERY = "минимум функции"


class WithClient:
    """The arguments of `BGEEmbeddings`. The asynchronous methods run `client` in a thread."""

    embeddings_class = BGEEmbeddings

    @pytest.fixture(autouse=True)
    def _client(self, client: Client) -> None:
        self.client = client

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"client": self.client}


class TestStandardUnit(WithClient, EmbeddingsUnitTests):
    pass


class TestStandardIntegration(WithClient, EmbeddingsIntegrationTests):
    pass


class TestStandardIntegrationAsync(WithClient, EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _async_client(self, async_client: AsyncClient) -> None:
        self.async_client = async_client

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"client": self.client, "async_client": self.async_client}


class TestStandardRetriever(RetrieversIntegrationTests):
    retriever_constructor = BGEHybridRetriever
    retriever_query_example = QUERY

    @pytest.fixture(autouse=True)
    def _search(self, search: HybridSearch) -> None:
        self.search = search

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"search": self.search}


class TestStandardRetrieverAsync(TestStandardRetriever):
    @pytest.fixture(autouse=True)
    def _async_search(self, async_search: AsyncHybridSearch) -> None:
        self.async_search = async_search

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"search": self.search, "async_search": self.async_search}


async def test_sparse_vectors_are_the_client_s(client: Client, async_client: AsyncClient) -> None:
    expected = client.embed(TEXTS, sparse=True).sparse
    assert expected is not None
    embeddings = BGESparseEmbeddings(client, async_client)
    for vectors in (embeddings.embed_documents(TEXTS), await embeddings.aembed_documents(TEXTS)):
        for vector, (indices, values) in zip(vectors, expected, strict=True):
            assert vector.indices == indices.tolist()
            assert vector.values == pytest.approx(values.tolist(), abs=1e-5)
    assert await embeddings.aembed_query(TEXTS[1]) == embeddings.embed_query(TEXTS[1])


async def test_the_hybrid_store_of_langchain_qdrant_finds_a_passage_by_its_text(
    client: Client, async_client: AsyncClient, passages: list[dict[str, str]]
) -> None:
    store = QdrantVectorStore.from_texts(
        [passage["text"] for passage in passages],
        BGEEmbeddings(client, async_client),
        [{"id": passage["_id"]} for passage in passages],
        location=":memory:",
        sparse_embedding=BGESparseEmbeddings(client, async_client),
        retrieval_mode=RetrievalMode.HYBRID,
    )
    for passage in passages[::20]:
        (document,) = store.similarity_search(passage["text"], k=1)
        assert document.metadata["id"] == passage["_id"]
        (document,) = await store.asimilarity_search(passage["text"], k=1)
        assert document.metadata["id"] == passage["_id"]
    store.client.close()


async def test_the_reranker_keeps_the_best(client: Client, async_client: AsyncClient) -> None:
    documents = [Document(text, metadata={"number": i}) for i, text in enumerate(TEXTS)]
    reranker = BGEReranker(client=client, async_client=async_client, top_n=1)
    best = client.rerank(QUERY, TEXTS)[0]
    for ranked in (
        reranker.compress_documents(documents, QUERY),
        await reranker.acompress_documents(documents, QUERY),
        await BGEReranker(client=client, top_n=1).acompress_documents(documents, QUERY),
    ):
        (document,) = ranked
        assert document.page_content == best.document
        assert document.metadata["number"] == best.index
        assert document.metadata["relevance_score"] == pytest.approx(best.relevance_score)
    assert "relevance_score" not in documents[best.index].metadata
    assert reranker.compress_documents([], QUERY) == []


async def test_the_retriever_s_ndcg_is_that_of_bge_evaluate(
    search: HybridSearch,
    async_search: AsyncHybridSearch,
    queries: list[str],
    ndcg: Callable[..., float],
    evaluated_ndcg: float,
) -> None:
    retriever = BGEHybridRetriever(search=search, async_search=async_search, k=100)
    answers = {query: retriever.invoke(query) for query in queries}
    async_answers = dict(zip(queries, await retriever.abatch(queries), strict=True))
    for result in (answers, async_answers):
        rankings = {
            query: [(d.metadata["_id"], d.metadata["relevance_score"]) for d in documents]
            for query, documents in result.items()
        }
        print(f"nDCG@10 {ndcg(rankings):.4f}, of bge evaluate {evaluated_ndcg:.4f}")
        assert ndcg(rankings) == evaluated_ndcg


async def test_a_filter_limits_a_search(
    search: HybridSearch, async_search: AsyncHybridSearch
) -> None:
    match = models.FieldCondition(key="_id", match=models.MatchValue(value="py-01"))
    filter = models.Filter(must=[match])
    retriever = BGEHybridRetriever(search=search, async_search=async_search)
    for documents in (
        retriever.invoke(QUERY, filter=filter),
        await retriever.ainvoke(QUERY, filter=filter),
        BGEHybridRetriever(search=search, filter=filter).invoke(QUERY),
    ):
        assert [document.metadata["_id"] for document in documents] == ["py-01"]


def test_an_error_is_the_client_s(client: Client, search: HybridSearch) -> None:
    with pytest.raises(ValidationError, match=r"`texts\[1\]` must not be empty or blank"):
        BGEEmbeddings(client).embed_documents(["text", " "])
    with pytest.raises(ValidationError, match="`query` must not be empty or blank"):
        BGEHybridRetriever(search=search).invoke(" ")
    assert asyncio.run(BGEEmbeddings(client).aembed_documents([])) == []
    with (
        Client(expect_fingerprint="another") as strict,
        pytest.raises(FingerprintError, match="vectors of model another were expected"),
    ):
        BGEEmbeddings(strict).embed_query(QUERY)
