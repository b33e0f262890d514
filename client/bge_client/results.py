"""Results of client calls: plain values and numpy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
WireFloats = NDArray[np.float32] | NDArray[np.float16]


class SparseVector(NamedTuple):
    """Token ids, ascending and unique, and their weights. Qdrant accepts both unchanged."""

    indices: NDArray[np.uint32]
    values: Floats

    def __repr__(self) -> str:
        return f"SparseVector({len(self.indices)} tokens)"


class Embedding(NamedTuple):
    """The requested vectors of one text."""

    dense: Floats | None  # [D]
    sparse: SparseVector | None
    colbert: WireFloats | None  # [tokens - 1, D]
    truncated: bool
    fingerprint: str

    def __repr__(self) -> str:
        vectors = (
            f"dense={_shape(self.dense)}, sparse={self.sparse}, colbert={_shape(self.colbert)}"
        )
        return f"Embedding({vectors}, fingerprint={self.fingerprint!r})"


def _shape(array: WireFloats | None) -> str | None:
    return None if array is None else f"{array.dtype}{list(array.shape)}"


class Usage(NamedTuple):
    """Token counts, special tokens included."""

    prompt_tokens: int = 0
    total_tokens: int = 0


@dataclass(frozen=True, eq=False)
class EmbedResult:
    """The vectors of N texts in order; a sequence of `Embedding`, compared by identity.

    `dense` is float32 [N, D]. `colbert` has one array [tokens - 1, D] for each text, by default
    float16. `truncated` holds the indices of truncated texts. Vectors not requested are None.
    """

    dense: Floats | None
    sparse: list[SparseVector] | None
    colbert: list[WireFloats] | None
    truncated: list[int]
    usage: Usage
    model: str
    fingerprint: str
    count: int
    provider: str = "bge"

    @cached_property
    def _truncated_set(self) -> frozenset[int]:
        return frozenset(self.truncated)

    def __len__(self) -> int:
        return self.count

    @overload
    def __getitem__(self, index: int) -> Embedding: ...
    @overload
    def __getitem__(self, index: slice) -> list[Embedding]: ...
    def __getitem__(self, index: int | slice) -> Embedding | list[Embedding]:
        if isinstance(index, slice):
            return [self[number] for number in range(self.count)[index]]
        if not -self.count <= index < self.count:
            raise IndexError(index)
        return Embedding(
            None if self.dense is None else self.dense[index],
            None if self.sparse is None else self.sparse[index],
            None if self.colbert is None else self.colbert[index],
            index % self.count in self._truncated_set,
            self.fingerprint,
        )

    def __iter__(self) -> Iterator[Embedding]:
        return (self[index] for index in range(self.count))

    def __repr__(self) -> str:
        vectors = f"dense={_shape(self.dense)}, sparse={self.sparse is not None}"
        vectors += f", colbert={self.colbert is not None}, truncated={len(self.truncated)}"
        return f"EmbedResult({self.count} texts, {vectors}, model={self.model!r})"


def merge(results: Sequence[EmbedResult]) -> EmbedResult:
    """Merge the results of consecutive slices of the texts."""
    if len(results) == 1:
        return results[0]
    dense = [result.dense for result in results if result.dense is not None]
    sparse = [result.sparse for result in results if result.sparse is not None]
    colbert = [result.colbert for result in results if result.colbert is not None]
    return replace(
        results[0],
        dense=np.concatenate(dense) if dense else None,
        sparse=list(chain.from_iterable(sparse)) if sparse else None,
        colbert=list(chain.from_iterable(colbert)) if colbert else None,
        truncated=_merged_truncated(results),
        usage=_total_usage(results),
        count=sum(len(result) for result in results),
    )


def _total_usage(results: Iterable[EmbedResult | RerankResult]) -> Usage:
    counts = zip(*(result.usage for result in results), strict=True)
    return Usage(*map(sum, counts))


def _merged_truncated(results: Sequence[EmbedResult | RerankResult]) -> list[int]:
    offsets = accumulate((len(result) for result in results), initial=0)
    slices = zip(offsets, results, strict=False)
    return [offset + index for offset, result in slices for index in result.truncated]


@dataclass(frozen=True)
class RankedDocument:
    """`index` is its position in `documents`; `relevance_score` is in 0..1, or a logit."""

    index: int
    relevance_score: float
    document: str


class RerankResult(list[RankedDocument]):
    """A list of the documents, best first, with the model and usage behind the scores.

    `truncated` holds the indices in `documents` of the truncated pairs.
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

    def __repr__(self) -> str:
        best = f", best: {self[0].index} at {self[0].relevance_score:.4g}" if self else ""
        return f"RerankResult({len(self)} documents{best}, model={self.model!r})"


def merge_rankings(rankings: Sequence[RerankResult], top_n: int | None = None) -> RerankResult:
    """Merge the rankings of consecutive slices of the documents."""
    documents: list[RankedDocument] = []
    for ranking in rankings:
        offset = len(documents)
        documents += [replace(document, index=document.index + offset) for document in ranking]
    documents.sort(key=lambda document: (-document.relevance_score, document.index))
    return RerankResult(
        documents[:top_n],
        usage=_total_usage(rankings),
        truncated=_merged_truncated(rankings),
        model=rankings[0].model,
        fingerprint=rankings[0].fingerprint,
    )
