"""haystack: embedders of texts and documents, a ranker and a retriever.

Their arguments are plain values and secrets, so that a pipeline can be saved. Loading one needs
`allow_deserialization_module("bge_retrieval")`. `endpoint` and `api_key` are those of a `Client`,
with its defaults. Components connect when they first run.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import cached_property
from typing import Any

from qdrant_client import models

from bge_client import AsyncClient, Client, Embedding, RankedDocument

from ..async_search import AsyncHybridSearch
from ..async_store import AsyncStore
from ..plan import Plan
from ..results import SearchResult
from ..search import HybridSearch
from ..store import Store
from .calls import ModelCalls, dense_list, sparse_lists

try:
    from haystack import Document, component
    from haystack.dataclasses import SparseEmbedding
    from haystack.utils import Secret
except ImportError as error:
    raise ImportError(
        f"{__name__} needs {error.name}: pip install 'bge-retrieval[haystack]'", name=error.name
    ) from None


class _Endpoint:
    """The clients of an endpoint.

    `component` makes another class of the decorated one, in which `super()` fails.
    """

    def __init__(self, endpoint: str | None = None, api_key: Secret | None = None) -> None:
        self.endpoint, self.api_key = endpoint, api_key

    @cached_property
    def _client(self) -> Client:
        return Client(self.endpoint, _value(self.api_key))

    @cached_property
    def _async_client(self) -> AsyncClient:
        return AsyncClient(self.endpoint, _value(self.api_key))

    @property
    def _calls(self) -> ModelCalls:
        return ModelCalls(self._client, self._async_client)

    def close(self) -> None:
        """Close what `run` has opened. The next one opens it again."""
        if client := vars(self).pop("_client", None):
            client.close()

    async def close_async(self) -> None:
        """Close what `run_async` has opened."""
        if client := vars(self).pop("_async_client", None):
            await client.aclose()


@component
class BGETextEmbedder(_Endpoint):
    """Embeds a query by bge-m3: its dense vector, normalized, and its sparse one, in one request.

    Raises:
        BGEError: see `errors.py` of `bge_client`.
    """

    @component.output_types(embedding=list[float], sparse_embedding=SparseEmbedding)
    def run(self, text: str) -> dict[str, Any]:
        return _vectors(self._calls.embed([text], dense=True, sparse=True)[0])

    @component.output_types(embedding=list[float], sparse_embedding=SparseEmbedding)
    async def run_async(self, text: str) -> dict[str, Any]:
        return _vectors((await self._calls.aembed([text], dense=True, sparse=True))[0])


@component
class BGEDocumentEmbedder(_Endpoint):
    """Adds `embedding` and `sparse_embedding` to documents, as `BGETextEmbedder` computes them.

    Raises:
        BGEError: see `errors.py` of `bge_client`.
    """

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        embeddings = self._calls.embed(_texts(documents), dense=True, sparse=True)
        return _embedded(documents, embeddings)

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, list[Document]]:
        embeddings = await self._calls.aembed(_texts(documents), dense=True, sparse=True)
        return _embedded(documents, embeddings)


@component
class BGERanker(_Endpoint):
    """Keeps the best `top_k` documents, best first. `run` may override `top_k`.

    Raises:
        BGEError: see `errors.py` of `bge_client`.
    """

    def __init__(
        self, endpoint: str | None = None, api_key: Secret | None = None, top_k: int = 10
    ) -> None:
        _Endpoint.__init__(self, endpoint, api_key)
        self.top_k = top_k

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        limit = self.top_k if top_k is None else top_k
        return _reranked(documents, self._calls.rerank(query, _texts(documents), limit))

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        limit = self.top_k if top_k is None else top_k
        return _reranked(documents, await self._calls.arerank(query, _texts(documents), limit))


@component
class BGEHybridRetriever(_Endpoint):
    """The best `top_k` points of a hybrid search. A document's `meta` is the point's payload.

    `plan` holds the fields of a `Plan`. Pass the `qdrant_url` of a server or the `qdrant_path` of a
    folder; with a folder, `run_async` searches in a thread. `run` may override `top_k`, and takes
    a filter of Qdrant.

    Raises:
        ConfigurationError: the collection does not exist, or an argument is invalid.
        FingerprintError: the endpoint serves another model than the collection's.
        BGEError: see `errors.py` of `bge_client`.
    """

    def __init__(
        self,
        collection: str,
        endpoint: str | None = None,
        api_key: Secret | None = None,
        *,
        qdrant_url: str | None = None,
        qdrant_path: str | None = None,
        qdrant_api_key: Secret | None = None,
        plan: dict[str, Any] | None = None,
        top_k: int = 10,
    ) -> None:
        _Endpoint.__init__(self, endpoint, api_key)
        self.collection, self.plan, self.top_k = collection, plan, top_k
        self.qdrant_url, self.qdrant_path = qdrant_url, qdrant_path
        self.qdrant_api_key = qdrant_api_key

    @cached_property
    def _store(self) -> Store:
        key = _value(self.qdrant_api_key)
        return Store.open(url=self.qdrant_url, path=self.qdrant_path, api_key=key)

    @cached_property
    def _async_store(self) -> AsyncStore:
        return AsyncStore.open(url=self.qdrant_url or "", api_key=_value(self.qdrant_api_key))

    @cached_property
    def _search(self) -> HybridSearch:
        plan = Plan(**self.plan or {})
        return HybridSearch(self._store, self._client, self.collection, plan)

    @cached_property
    def _async_search(self) -> AsyncHybridSearch:
        plan = Plan(**self.plan or {})
        return AsyncHybridSearch(self._async_store, self._async_client, self.collection, plan)

    def close(self) -> None:
        """Close what `run` has opened. The next one opens it again."""
        vars(self).pop("_search", None)
        if store := vars(self).pop("_store", None):
            store.close()
        _Endpoint.close(self)

    async def close_async(self) -> None:
        """Close what `run_async` has opened."""
        vars(self).pop("_async_search", None)
        if store := vars(self).pop("_async_store", None):
            await store.aclose()
        await _Endpoint.close_async(self)

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, top_k: int | None = None, filters: models.Filter | None = None
    ) -> dict[str, list[Document]]:
        limit = self.top_k if top_k is None else top_k
        return _documents(self._search.search(query, limit, filter=filters))

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, top_k: int | None = None, filters: models.Filter | None = None
    ) -> dict[str, list[Document]]:
        if self.qdrant_path is not None:  # local mode is synchronous
            return await asyncio.to_thread(self.run, query, top_k, filters)
        limit = self.top_k if top_k is None else top_k
        return _documents(await self._async_search.search(query, limit, filter=filters))


def _value(secret: Secret | None) -> str | None:
    value: str | None = secret.resolve_value() if secret is not None else None
    return value


def _texts(documents: list[Document]) -> list[str]:
    return [document.content or "" for document in documents]


def _vectors(embedding: Embedding) -> dict[str, Any]:
    sparse = SparseEmbedding(*sparse_lists(embedding))
    return {"embedding": dense_list(embedding), "sparse_embedding": sparse}


def _embedded(documents: list[Document], embeddings: list[Embedding]) -> dict[str, list[Document]]:
    pairs = zip(documents, embeddings, strict=True)
    return {"documents": [replace(document, **_vectors(vectors)) for document, vectors in pairs]}


def _reranked(
    documents: list[Document], ranking: list[RankedDocument]
) -> dict[str, list[Document]]:
    reranked = [
        replace(documents[ranked.index], score=ranked.relevance_score) for ranked in ranking
    ]
    return {"documents": reranked}


def _documents(result: SearchResult) -> dict[str, list[Document]]:
    documents = [
        Document(id=str(hit.id), content=hit.text, meta=dict(hit.payload), score=hit.score)
        for hit in result
    ]
    return {"documents": documents}
