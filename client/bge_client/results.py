"""What calls return: plain values, numpy arrays inside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class SparseVector(NamedTuple):
    """Token ids, ascending and unique, and their weights: Qdrant takes both as they are."""

    indices: NDArray[np.uint32]
    values: Floats


class Embedding(NamedTuple):
    """One text's vectors, those that were asked for."""

    dense: Floats | None  # [D]
    sparse: SparseVector | None
    colbert: NDArray[Any] | None  # [tokens - 1, D]
    truncated: bool
    fingerprint: str


class Usage(NamedTuple):
    """Tokens, special ones included."""

    prompt_tokens: int = 0
    total_tokens: int = 0

    def plus(self, other: Usage) -> Usage:
        return Usage(self[0] + other[0], self[1] + other[1])


@dataclass(frozen=True)
class EmbedResult:
    """The vectors of N texts, in their order; a sequence of `Embedding`.

    `dense` is float32 [N, D], `colbert` one array [tokens - 1, D] for each text (float16 unless
    asked otherwise), `truncated` the places of the texts that were cut. What was not asked for
    is None.
    """

    dense: Floats | None
    sparse: list[SparseVector] | None
    colbert: list[NDArray[Any]] | None
    truncated: list[int]
    usage: Usage
    model: str
    fingerprint: str
    count: int
    provider: str = "bge"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> Embedding:
        if not -self.count <= place < self.count:
            raise IndexError(place)
        return Embedding(
            None if self.dense is None else self.dense[place],
            None if self.sparse is None else self.sparse[place],
            None if self.colbert is None else self.colbert[place],
            place % self.count in self.truncated,
            self.fingerprint,
        )

    def __iter__(self) -> Iterator[Embedding]:
        return (self[place] for place in range(self.count))


def merge(parts: Sequence[EmbedResult]) -> EmbedResult:
    """Results of consecutive slices of the texts as one."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    usage, truncated, before = Usage(), [], 0
    for part in parts:
        usage = usage.plus(part.usage)
        truncated += [before + place for place in part.truncated]
        before += part.count
    return EmbedResult(
        dense=None
        if first.dense is None
        else np.concatenate([part.dense for part in parts if part.dense is not None]),
        sparse=None if first.sparse is None else [one for p in parts for one in p.sparse or ()],
        colbert=None if first.colbert is None else [one for p in parts for one in p.colbert or ()],
        truncated=truncated,
        usage=usage,
        model=first.model,
        fingerprint=first.fingerprint,
        count=before,
        provider=first.provider,
    )


@dataclass(frozen=True)
class RankedDocument:
    """`index` is the place in `documents`; `relevance_score` in 0..1, or a logit."""

    index: int
    relevance_score: float
    document: str


class RerankResult(list[RankedDocument]):
    """The documents, best first: a list that also knows where its scores come from.

    `truncated` are the places in `documents` of the pairs that were cut.
    """

    def __init__(
        self,
        ranked: Sequence[RankedDocument],
        *,
        usage: Usage,
        truncated: list[int],
        model: str,
        fingerprint: str,
        provider: str = "bge",
    ) -> None:
        super().__init__(ranked)
        self.usage = usage
        self.truncated = truncated
        self.model = model
        self.fingerprint = fingerprint
        self.provider = provider
