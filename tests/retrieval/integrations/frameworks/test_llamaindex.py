from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from bge_client import AsyncClient, Client, ConfigurationError, ValidationError
from bge_retrieval import AsyncHybridSearch, HybridSearch
from bge_retrieval.integrations.llamaindex import (
    BGEEmbedding,
    BGEHybridRetriever,
    BGEReranker,
    BGESparseEncoder,
)

TEXTS = ["A transaction is all or nothing.", "Градиентный спуск ищет минимум функции."]
QUERY = "минимум функции"
QDRANT_URL = os.environ["QDRANT_URL"]


async def test_vectors_are_the_client_s(client: Client, async_client: AsyncClient) -> None:
    dense = client.embed(TEXTS).dense
    assert dense is not None
    threaded, embedding = BGEEmbedding(client), BGEEmbedding(client, async_client)
    for vectors in (
        embedding.get_text_embedding_batch(TEXTS),
        await embedding.aget_text_embedding_batch(TEXTS),
        await threaded.aget_text_embedding_batch(TEXTS),
        [embedding.get_text_embedding(text) for text in TEXTS],
        [await embedding.aget_text_embedding(text) for text in TEXTS],
        [embedding.get_query_embedding(text) for text in TEXTS],
        [await embedding.aget_query_embedding(text) for text in TEXTS],
    ):
        for vector, expected in zip(vectors, dense, strict=True):
            assert vector == pytest.approx(expected.tolist(), abs=1e-5)


def test_an_ingestion_pipeline_takes_the_embedding(client: Client) -> None:
    """Its cache needs the component as a dictionary."""
    embedding = BGEEmbedding(client)
    assert embedding.to_dict()["model_name"] == "bge-m3"
    nodes = IngestionPipeline(transformations=[embedding]).run(nodes=[TextNode(text=TEXTS[0])])
    assert nodes[0].embedding == pytest.approx(embedding.get_text_embedding(TEXTS[0]), abs=1e-5)


async def test_the_hybrid_qdrant_store_finds_a_passage_by_its_text(
    client: Client, async_client: AsyncClient, passages: list[dict[str, str]]
) -> None:
    encode = BGESparseEncoder(client)
    sync_qdrant, async_qdrant = QdrantClient(url=QDRANT_URL), AsyncQdrantClient(url=QDRANT_URL)
    store = QdrantVectorStore(
        "llamaindex",
        client=sync_qdrant,
        aclient=async_qdrant,
        enable_hybrid=True,
        sparse_doc_fn=encode,
        sparse_query_fn=encode,
    )
    index = VectorStoreIndex(
        [TextNode(text=passage["text"]) for passage in passages],
        embed_model=BGEEmbedding(client, async_client),
        storage_context=StorageContext.from_defaults(vector_store=store),
    )
    retriever = index.as_retriever(
        vector_store_query_mode="hybrid", similarity_top_k=1, sparse_top_k=5
    )
    for text in [passage["text"] for passage in passages[::20]]:
        assert [node.text for node in retriever.retrieve(text)] == [text]
        assert [node.text for node in await retriever.aretrieve(text)] == [text]
    sync_qdrant.close()
    await async_qdrant.close()


async def test_the_reranker_keeps_the_best(client: Client, async_client: AsyncClient) -> None:
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in TEXTS]
    reranker = BGEReranker(client, async_client, top_n=1)
    best = client.rerank(QUERY, TEXTS)[0]
    for ranked in (
        reranker.postprocess_nodes(nodes, query_str=QUERY),
        await reranker.apostprocess_nodes(nodes, query_str=QUERY),
        await BGEReranker(client, top_n=1).apostprocess_nodes(nodes, query_str=QUERY),
    ):
        assert [node.text for node in ranked] == [best.document]
        assert ranked[0].score == pytest.approx(best.relevance_score)
    assert reranker.postprocess_nodes([], query_str=QUERY) == []
    with pytest.raises(ConfigurationError, match="pass a query"):
        reranker.postprocess_nodes(nodes)


async def test_the_retriever_s_ndcg_is_that_of_bge_evaluate(
    search: HybridSearch,
    async_search: AsyncHybridSearch,
    queries: list[str],
    ndcg: Callable[..., float],
    evaluated_ndcg: float,
) -> None:
    retriever = BGEHybridRetriever(search, async_search, similarity_top_k=100)
    answers = {query: retriever.retrieve(query) for query in queries}
    async_answers = {query: await retriever.aretrieve(query) for query in queries}
    for result in (answers, async_answers):
        rankings = {
            query: [(node.metadata["_id"], node.score) for node in nodes]
            for query, nodes in result.items()
        }
        print(f"nDCG@10 {ndcg(rankings):.4f}, of bge evaluate {evaluated_ndcg:.4f}")
        assert ndcg(rankings) == evaluated_ndcg


async def test_a_filter_limits_a_search(search: HybridSearch) -> None:
    match = models.FieldCondition(key="_id", match=models.MatchValue(value="py-01"))
    retriever = BGEHybridRetriever(search, filter=models.Filter(must=[match]))
    for (node,) in (retriever.retrieve(QUERY), await retriever.aretrieve(QUERY)):
        assert node.metadata["_id"] == "py-01"
        assert node.node.get_content(MetadataMode.LLM) == node.text
        assert node.node.get_content(MetadataMode.EMBED) == node.text


def test_an_error_is_the_client_s(client: Client, search: HybridSearch) -> None:
    with pytest.raises(ValidationError, match=r"`texts\[1\]` must not be empty or blank"):
        BGEEmbedding(client).get_text_embedding_batch(["text", " "])
    with pytest.raises(ValidationError, match="`query` must not be empty or blank"):
        BGEHybridRetriever(search).retrieve(" ")
