"""LangChain: embeddings, sparse embeddings for langchain-qdrant, a reranker and a retriever.

Each takes a `Client` or a `HybridSearch`, and for its asynchronous methods the asynchronous one;
without it they run the first in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from qdrant_client import models

from bge_client import AsyncClient, Client, Embedding

from ..async_search import AsyncHybridSearch
from ..results import SearchResult
from ..search import HybridSearch
from .calls import ModelCalls, dense_list, search_async, sparse_lists

try:
    from langchain_core.callbacks import (
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForRetrieverRun,
        Callbacks,
    )
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from langchain_qdrant import SparseEmbeddings, SparseVector
    from pydantic import ConfigDict
except ImportError as error:
    raise ImportError(
        f"{__name__} needs {error.name}: pip install 'bge-retrieval[langchain]'", name=error.name
    ) from None


class BGEEmbeddings(Embeddings):
    """Dense vectors of bge-m3, normalized.

    Raises:
        BGEError: see `errors.py` of `bge_client`.
    """

    def __init__(self, client: Client, async_client: AsyncClient | None = None) -> None:
        self._calls = ModelCalls(client, async_client)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [dense_list(embedding) for embedding in self._calls.embed(texts, dense=True)]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return [dense_list(embedding) for embedding in await self._calls.aembed(texts, dense=True)]

    async def aembed_query(self, text: str) -> list[float]:
        return (await self.aembed_documents([text]))[0]


class BGESparseEmbeddings(SparseEmbeddings):
    """Sparse vectors of bge-m3, for the `sparse_embedding` of a `QdrantVectorStore`.

    Raises:
        BGEError: see `errors.py` of `bge_client`.
    """

    def __init__(self, client: Client, async_client: AsyncClient | None = None) -> None:
        self._calls = ModelCalls(client, async_client)

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        return [_sparse(embedding) for embedding in self._calls.embed(texts, sparse=True)]

    def embed_query(self, text: str) -> SparseVector:
        return self.embed_documents([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[SparseVector]:
        return [_sparse(embedding) for embedding in await self._calls.aembed(texts, sparse=True)]

    async def aembed_query(self, text: str) -> SparseVector:
        return (await self.aembed_documents([text]))[0]


class BGEReranker(BaseDocumentCompressor):
    """Keeps the best `top_n` documents, best first, with a `relevance_score` in their metadata.

    Raises:
        BGEError: see `errors.py` of `bge_client`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    client: Client
    async_client: AsyncClient | None = None
    top_n: int = 10

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        texts = [document.page_content for document in documents]
        ranking = ModelCalls(self.client).rerank(query, texts, self.top_n)
        return [_scored(documents[ranked.index], ranked.relevance_score) for ranked in ranking]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        texts = [document.page_content for document in documents]
        calls = ModelCalls(self.client, self.async_client)
        ranking = await calls.arerank(query, texts, self.top_n)
        return [_scored(documents[ranked.index], ranked.relevance_score) for ranked in ranking]


class BGEHybridRetriever(BaseRetriever):
    """The best `k` points of a hybrid search. `invoke` may override `k` and `filter`.

    A document's metadata is the point's payload, with the score as `relevance_score`.

    Raises:
        FingerprintError: the endpoint serves another model than the collection's.
        BGEError: see `errors.py` of `bge_client`.
    """

    model_config = ConfigDict(extra="forbid")

    search: HybridSearch
    async_search: AsyncHybridSearch | None = None
    k: int = 10
    filter: models.Filter | None = None

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: models.Filter | None = None,
    ) -> list[Document]:
        limit, filter = self.k if k is None else k, filter or self.filter
        return _documents(self.search.search(query, limit, filter=filter))

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: models.Filter | None = None,
    ) -> list[Document]:
        limit, filter = self.k if k is None else k, filter or self.filter
        return _documents(await search_async(self.search, self.async_search, query, limit, filter))


def _sparse(embedding: Embedding) -> SparseVector:
    indices, values = sparse_lists(embedding)
    return SparseVector(indices=indices, values=values)


def _documents(result: SearchResult) -> list[Document]:
    return [
        _scored(Document(hit.text or "", id=str(hit.id), metadata=dict(hit.payload)), hit.score)
        for hit in result
    ]


def _scored(document: Document, score: float) -> Document:
    metadata = document.metadata | {"relevance_score": score}
    return document.model_copy(update={"metadata": metadata})
