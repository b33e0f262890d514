"""The hosted models that a system can name. The only module that opens a client of a provider."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, Protocol

from bge_client import EmbedResult, JinaClient, RerankResult

# Names of systems, and of the models in Jina's API.
EMBEDDING_MODELS = {
    "jina": "jina-embeddings-v3",
    "jina-v3": "jina-embeddings-v3",
    "jina-v4": "jina-embeddings-v4",
    "jina-v5": "jina-embeddings-v5-text-small",
    "jina-v5-nano": "jina-embeddings-v5-text-nano",
}
RERANKING_MODELS = {
    "jina-reranker-v2": "jina-reranker-v2-base-multilingual",
    "jina-reranker-v3": "jina-reranker-v3",
}
DEFAULT_RERANKER = "jina-reranker-v2"


class Provider(Protocol):
    """What a search needs of a provider."""

    def embed(self, texts: str, *, input_type: Literal["query"]) -> EmbedResult: ...
    def rerank(self, query: str, documents: Sequence[str]) -> RerankResult: ...
    def close(self) -> None: ...


def open_embedder(name: str) -> Provider:
    """Return a client of a model of `EMBEDDING_MODELS`.

    Raises:
        ConfigurationError: the provider's key is missing.
    """
    return JinaClient(os.environ.get("JINA_API_KEY", ""), embedding_model=EMBEDDING_MODELS[name])


def open_reranker(name: str) -> Provider:
    """Return a client of a model of `RERANKING_MODELS`, and raise as `open_embedder`."""
    return JinaClient(os.environ.get("JINA_API_KEY", ""), rerank_model=RERANKING_MODELS[name])
