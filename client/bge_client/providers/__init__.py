"""Providers of embeddings and scores, which the router tries in order.

Endpoint            the BGE endpoint: dense, sparse and ColBERT vectors
OpenAICompatible    a host of the same models, or of others; `presets.py` names some
JinaClient          Jina's models, in a vector space of their own
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, Protocol

from ..codec import EmbedOptions
from ..errors import ConfigurationError
from ..results import EmbedResult, RerankResult

InputType = Literal["query", "document"]
INPUT_TYPES = ("query", "document")
DENSE = EmbedOptions()


class Provider(Protocol):
    """What the router needs of a provider. Threads share it.

    `name` is the `provider` of its results. A `dense_only` provider has no other vectors.
    """

    name: str
    dense_only: bool

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        input_type: InputType = "document",
        options: EmbedOptions = DENSE,
    ) -> EmbedResult: ...

    def rerank(
        self,
        query: str,
        documents: Iterable[str | Mapping[str, object]],
        *,
        top_n: int | None = None,
    ) -> RerankResult: ...

    def is_healthy(self) -> bool:
        """Return whether a request is worth sending, as far as that is known without one."""

    def check_fingerprint(self, expected: str) -> None:
        """Raises ProbeError if its vectors are known not to have the fingerprint `expected`."""

    def close(self) -> None: ...


def check_input_type(input_type: str) -> None:
    """Raises ConfigurationError if it is invalid."""
    if input_type not in INPUT_TYPES:
        kinds = " or ".join(INPUT_TYPES)
        raise ConfigurationError(f"`input_type` must be {kinds}. Given: {input_type!r}")
