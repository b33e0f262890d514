"""LlamaIndex: an embedding, a sparse encoder for its Qdrant store, a reranker and a retriever.

Each takes a `Client` or a `HybridSearch`, and for its asynchronous methods the asynchronous one;
without it they run the first in a thread.
"""

from __future__ import annotations

from typing import Any

from qdrant_client import models

from bge_client import AsyncClient, Client, ConfigurationError, RankedDocument

from ..async_search import AsyncHybridSearch
from ..results import SearchResult
from ..search import HybridSearch
from .calls import ModelCalls, dense_list, search_async, sparse_lists

try:
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.callbacks import CallbackManager
    from llama_index.core.embeddings import BaseEmbedding
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
except ImportError as error:
    raise ImportError(
        f"{__name__} needs {error.name}: pip install 'bge-retrieval[llamaindex]'", name=error.name
    ) from None

MAX_BATCH_SIZE = 2_048  # LlamaIndex's limit; the client makes its own batches of them


class BGEEmbedding(BaseEmbedding):
    """Dense vectors of bge-m3, normalized.

    Raises:
        BGEError: see `errors.py` of `bge_client`.
    """

    model_name: str = "bge-m3"
    embed_batch_size: int = MAX_BATCH_SIZE
    _calls: ModelCalls = PrivateAttr()

    def __init__(
        self, client: Client, async_client: AsyncClient | None = None, **fields: Any
    ) -> None:
        super().__init__(**fields)
        self._calls = ModelCalls(client, async_client)

    @classmethod
    def class_name(cls) -> str:
        return "BGEEmbedding"

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [dense_list(embedding) for embedding in self._calls.embed(texts, dense=True)]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embeddings([query])[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [dense_list(embedding) for embedding in await self._calls.aembed(texts, dense=True)]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await self._aget_text_embeddings([query]))[0]


class BGESparseEncoder:
    """Sparse vectors of bge-m3, for `sparse_doc_fn` and `sparse_query_fn` of a `QdrantVectorStore`.

    The store calls it in its asynchronous methods too, and so blocks the event loop.

    Raises:
        BGEError: see `errors.py` of `bge_client`.
    """

    def __init__(self, client: Client) -> None:
        self._calls = ModelCalls(client)

    def __call__(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """Return the token ids of each text, and their weights."""
        vectors = [sparse_lists(embedding) for embedding in self._calls.embed(texts, sparse=True)]
        return [indices for indices, _ in vectors], [values for _, values in vectors]


class BGEReranker(BaseNodePostprocessor):
    """Keeps the best `top_n` nodes, best first. Reads a node's text as an embedding model would.

    Raises:
        ConfigurationError: there is no query.
        BGEError: see `errors.py` of `bge_client`.
    """

    top_n: int = 10
    _calls: ModelCalls = PrivateAttr()

    def __init__(
        self, client: Client, async_client: AsyncClient | None = None, **fields: Any
    ) -> None:
        super().__init__(**fields)
        self._calls = ModelCalls(client, async_client)

    @classmethod
    def class_name(cls) -> str:
        return "BGEReranker"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, texts = _query(query_bundle), _texts(nodes)
        return _reranked(nodes, self._calls.rerank(query, texts, self.top_n))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, texts = _query(query_bundle), _texts(nodes)
        return _reranked(nodes, await self._calls.arerank(query, texts, self.top_n))


class BGEHybridRetriever(BaseRetriever):
    """The best `similarity_top_k` points of a hybrid search.

    A node's metadata is the point's payload. Prompts get the text only: the payload repeats it.

    Raises:
        FingerprintError: the endpoint serves another model than the collection's.
        BGEError: see `errors.py` of `bge_client`.
    """

    def __init__(
        self,
        search: HybridSearch,
        async_search: AsyncHybridSearch | None = None,
        *,
        similarity_top_k: int = 10,
        filter: models.Filter | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager=callback_manager)
        self._search, self._async_search = search, async_search
        self._limit, self._filter = similarity_top_k, filter

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return _nodes(self._search.search(query_bundle.query_str, self._limit, filter=self._filter))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        query = query_bundle.query_str
        return _nodes(
            await search_async(self._search, self._async_search, query, self._limit, self._filter)
        )


def _query(query_bundle: QueryBundle | None) -> str:
    if query_bundle is None:
        raise ConfigurationError("pass a query, as `query_str` or `query_bundle`")
    query: str = query_bundle.query_str
    return query


def _texts(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]


def _reranked(nodes: list[NodeWithScore], ranking: list[RankedDocument]) -> list[NodeWithScore]:
    return [
        NodeWithScore(node=nodes[ranked.index].node, score=ranked.relevance_score)
        for ranked in ranking
    ]


def _nodes(result: SearchResult) -> list[NodeWithScore]:
    return [
        NodeWithScore(
            node=TextNode(
                id_=str(hit.id),
                text=hit.text or "",
                metadata=dict(hit.payload),
                excluded_llm_metadata_keys=list(hit.payload),
                excluded_embed_metadata_keys=list(hit.payload),
            ),
            score=hit.score,
        )
        for hit in result
    ]
