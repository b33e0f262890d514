"""Kinds of systems, such as `hybrid+colbert+rerank` or `jina-v5+jina-reranker-v3`."""

from __future__ import annotations

from dataclasses import dataclass

from bge_client import ConfigurationError
from bge_client.providers.environment import HOSTS

from ..plan import Plan
from .providers import DEFAULT_RERANKER, EMBEDDING_MODELS, RERANKING_MODELS

PLANS = {"dense": Plan(sparse=False), "sparse": Plan(dense=False), "hybrid": Plan()}
COLBERT, RERANK, BGE_RERANKER = "colbert", "rerank", "bge-reranker"
RETRIEVALS = (*PLANS, *EMBEDDING_MODELS, *HOSTS)
RERANKERS = (BGE_RERANKER, *RERANKING_MODELS, *HOSTS)


@dataclass(frozen=True)
class Kind:
    """How a system searches.

    `retrieval` is one of `RETRIEVALS`: a key of `PLANS`, or a provider of dense vectors.
    `reranker` is one of `RERANKERS`, or None.
    """

    retrieval: str
    colbert: bool = False
    reranker: str | None = None

    @property
    def is_hosted(self) -> bool:
        """Whether a provider embeds the queries."""
        return self.retrieval not in PLANS

    @property
    def is_of_jina(self) -> bool:
        """Whether Jina's models do all the work."""
        return self.retrieval in EMBEDDING_MODELS and self.reranker in (None, *RERANKING_MODELS)

    @classmethod
    def parse(cls, text: str) -> Kind:
        """Return the kind for a retrieval and what follows it; `rerank` is its own reranker.

        Raises:
            ConfigurationError: there is no such kind. The message has the names.
        """
        retrieval, *stages = text.split("+")
        colbert = stages[:1] == [COLBERT] and retrieval in PLANS
        rerankers = stages[colbert:]
        if retrieval not in RETRIEVALS or len(rerankers) > 1:
            raise _unknown(text)
        if not rerankers:
            return cls(retrieval, colbert)
        reranker = rerankers[0] if rerankers != [RERANK] else _own_reranker(retrieval)
        if reranker not in RERANKERS:
            raise _unknown(text)
        return cls(retrieval, colbert, reranker)


def _own_reranker(retrieval: str) -> str:
    if retrieval in HOSTS:
        return retrieval
    return BGE_RERANKER if retrieval in PLANS else DEFAULT_RERANKER


def _unknown(text: str) -> ConfigurationError:
    return ConfigurationError(
        f"a system must be of {', '.join(RETRIEVALS)}, then +{COLBERT} (of "
        f"{', '.join(PLANS)}), then +{RERANK} or +{', +'.join(RERANKERS)}. Given: {text!r}"
    )
