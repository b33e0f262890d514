"""The hosted models that a system can name. The only module that opens a client of a provider."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, Protocol

from bge_client import EmbedResult, JinaClient, Probe, RerankResult
from bge_client.providers.environment import HOSTS, Settings, probe_from, provider_from

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
    def check_fingerprint(self, expected: str) -> None: ...
    def close(self) -> None: ...


def open_embedder(name: str, probe: Probe | None) -> Provider:
    """Return a client of a model of `EMBEDDING_MODELS`, or of one of `HOSTS`.

    A host may search the BGE vectors of `probe`, by default that of the file `BGE_PROBE`.

    Raises:
        ConfigurationError: a variable of the environment is missing or invalid.
    """
    if name in HOSTS:
        probe = probe or probe_from(os.environ)
        return provider_from(name, Settings(os.environ, "EMBEDDINGS", probe=probe))
    return JinaClient(os.environ.get("JINA_API_KEY", ""), embedding_model=EMBEDDING_MODELS[name])


def open_reranker(name: str) -> Provider:
    """Return a client of a model of `RERANKING_MODELS`, or of one of `HOSTS`.

    Raises as `open_embedder` does.
    """
    if name in HOSTS:
        return provider_from(name, Settings(os.environ, "RERANKER"))
    return JinaClient(os.environ.get("JINA_API_KEY", ""), rerank_model=RERANKING_MODELS[name])
