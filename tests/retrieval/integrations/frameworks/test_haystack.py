from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from haystack import Document, Pipeline
from haystack.core.errors import PipelineRuntimeError
from haystack.core.serialization import allow_deserialization_module
from haystack.utils import Secret
from haystack_integrations.components.retrievers.qdrant import QdrantHybridRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from qdrant_client import models

from bge_client import Client, ValidationError
from bge_retrieval import HybridSearch, Store, evaluation, index
from bge_retrieval.integrations.haystack import (
    BGEDocumentEmbedder,
    BGEHybridRetriever,
    BGERanker,
    BGETextEmbedder,
)

TEXTS = ["A transaction is all or nothing.", "Градиентный спуск ищет минимум функции."]
QUERY = "минимум функции"
PLAN = {"rerank": evaluation.PLANS["hybrid+rerank"].rerank}
ENDPOINT, QDRANT_URL = os.environ["BGE_EMBEDDINGS_ENDPOINT"], os.environ["QDRANT_URL"]


@pytest.fixture
def documents() -> list[Document]:
    return [Document(content=text) for text in TEXTS]


@pytest.fixture
def retriever(search: HybridSearch) -> Iterator[BGEHybridRetriever]:
    """A retriever over the collection of `search`."""
    retriever = BGEHybridRetriever("course", qdrant_url=QDRANT_URL, plan=PLAN, top_k=100)
    yield retriever
    retriever.close()


def check_vectors(vectors: dict[str, Any], client: Client, text: str) -> None:
    expected = client.embed(text, sparse=True)[0]
    assert expected.dense is not None
    assert expected.sparse is not None
    assert vectors["embedding"] == pytest.approx(expected.dense.tolist(), abs=1e-5)
    assert vectors["sparse_embedding"].indices == expected.sparse.indices.tolist()
    values = pytest.approx(expected.sparse.values.tolist(), abs=1e-5)
    assert vectors["sparse_embedding"].values == values


async def test_vectors_are_the_client_s(client: Client, documents: list[Document]) -> None:
    text_embedder, embedder = BGETextEmbedder(), BGEDocumentEmbedder()
    check_vectors(text_embedder.run(QUERY), client, QUERY)
    check_vectors(await text_embedder.run_async(QUERY), client, QUERY)
    for output in (embedder.run(documents), await embedder.run_async(documents)):
        for document, text in zip(output["documents"], TEXTS, strict=True):
            check_vectors(vars(document), client, text)
    assert documents[0].embedding is None
    assert embedder.run([]) == {"documents": []}
    for component in (text_embedder, embedder):
        await component.close_async()
        component.close()
        component.close()  # nothing is open


async def test_the_ranker_keeps_the_best(client: Client, documents: list[Document]) -> None:
    ranker = BGERanker()
    best = client.rerank(QUERY, TEXTS)[0]
    for output in (
        ranker.run(QUERY, documents, top_k=1),
        await ranker.run_async(QUERY, documents, top_k=1),
        BGERanker(top_k=1).run(QUERY, documents),
    ):
        (document,) = output["documents"]
        assert document.content == best.document
        assert document.score == pytest.approx(best.relevance_score)
    assert ranker.run(QUERY, []) == {"documents": []}
    await ranker.close_async()


def hybrid_pipeline(store: QdrantDocumentStore) -> Pipeline:
    """Search in haystack's own Qdrant store, and rerank."""
    pipeline = Pipeline()
    pipeline.add_component("embedder", BGETextEmbedder())
    pipeline.add_component("retriever", QdrantHybridRetriever(store, top_k=5))
    pipeline.add_component("ranker", BGERanker(top_k=1))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    pipeline.connect("embedder.sparse_embedding", "retriever.query_sparse_embedding")
    pipeline.connect("retriever.documents", "ranker.documents")
    return pipeline


def test_a_pipeline_over_haystack_s_qdrant_store_finds_a_passage_by_its_text(
    client: Client, passages: list[dict[str, str]]
) -> None:
    documents = [Document(content=passage["text"]) for passage in passages]
    embedded = BGEDocumentEmbedder().run(documents)["documents"]
    store = QdrantDocumentStore(
        ":memory:",
        embedding_dim=len(embedded[0].embedding or []),
        use_sparse_embeddings=True,
        progress_bar=False,
    )
    store.write_documents(embedded)
    pipeline = hybrid_pipeline(store)
    for document in documents[::20]:
        data = {"embedder": {"text": document.content}, "ranker": {"query": document.content}}
        (hit,) = pipeline.run(data)["ranker"]["documents"]
        assert hit.content == document.content
    pipeline.close()


async def test_the_retriever_s_ndcg_is_that_of_bge_evaluate(
    retriever: BGEHybridRetriever,
    queries: list[str],
    ndcg: Callable[..., float],
    evaluated_ndcg: float,
) -> None:
    answers = {query: retriever.run(query) for query in queries}
    async_answers = {query: await retriever.run_async(query) for query in queries}
    for result in (answers, async_answers):
        rankings = {
            query: [(document.meta["_id"], document.score) for document in output["documents"]]
            for query, output in result.items()
        }
        print(f"nDCG@10 {ndcg(rankings):.4f}, of bge evaluate {evaluated_ndcg:.4f}")
        assert ndcg(rankings) == evaluated_ndcg
    await retriever.close_async()


async def test_a_filter_limits_a_search(retriever: BGEHybridRetriever) -> None:
    match = models.FieldCondition(key="_id", match=models.MatchValue(value="py-01"))
    filters = models.Filter(must=[match])
    for output in (
        retriever.run(QUERY, filters=filters),
        await retriever.run_async(QUERY, top_k=3, filters=filters),
    ):
        assert [document.meta["_id"] for document in output["documents"]] == ["py-01"]
    await retriever.close_async()


def test_a_pipeline_is_saved_and_loaded_without_its_keys(
    retriever: BGEHybridRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "the-key")
    key = Secret.from_env_var("SOME_KEY")
    pipeline = Pipeline()
    pipeline.add_component("embedder", BGETextEmbedder(ENDPOINT, key))
    pipeline.add_component("retriever", retriever)
    pipeline.add_component("ranker", BGERanker(ENDPOINT, key, top_k=2))
    pipeline.connect("retriever.documents", "ranker.documents")
    saved = pipeline.dumps()
    assert "the-key" not in saved
    allow_deserialization_module("bge_retrieval")
    loaded = Pipeline.loads(saved)
    assert loaded.dumps() == saved
    data = {"embedder": {"text": QUERY}, "retriever": {"query": QUERY}, "ranker": {"query": QUERY}}
    assert loaded.run(data) == pipeline.run(data)
    loaded.close()
    assert loaded.run(data) == pipeline.run(data)  # opened again
    loaded.close()
    pipeline.close()


async def test_a_folder_of_qdrant_s_local_mode_is_searched(client: Client, tmp_path: Path) -> None:
    with Store.open(path=tmp_path) as store:
        index(store, client, "texts", [{"_id": text, "text": text} for text in TEXTS])
    retriever = BGEHybridRetriever("texts", qdrant_path=str(tmp_path), top_k=1)
    assert await retriever.run_async(TEXTS[1]) == (output := retriever.run(TEXTS[1]))
    assert [document.content for document in output["documents"]] == [TEXTS[1]]
    retriever.close()


def test_an_error_is_the_client_s(documents: list[Document]) -> None:
    embedder = BGEDocumentEmbedder()
    with pytest.raises(ValidationError, match=r"`texts\[2\]` must not be empty or blank"):
        embedder.run([*documents, Document(content=" ")])
    pipeline = Pipeline()
    pipeline.add_component("embedder", embedder)
    with pytest.raises(PipelineRuntimeError, match="must not be empty or blank") as caught:
        pipeline.run({"embedder": {"documents": [Document(content=" ")]}})
    assert isinstance(caught.value.__cause__, ValidationError)
    pipeline.close()
