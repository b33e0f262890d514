"""The results of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

from .documents import chunk_in, id_in
from .store import Payload, PointId


@dataclass(frozen=True)
class Stage:
    """A document's rank in a stage, from 1, and its score there."""

    rank: int
    score: float


@dataclass(frozen=True)
class Hit:
    """A point. `stages` is filled only by `explain`.

    `neighbours` has the texts of the chunks before and after this one, by number, on request.
    """

    id: PointId
    score: float
    text: str | None
    payload: Payload
    stages: dict[str, Stage] = field(default_factory=dict)
    neighbours: dict[int, str] = field(default_factory=dict)

    @property
    def document_id(self) -> str:
        """The id with which the document was indexed."""
        document_id = id_in(self.payload)
        return str(self.document_point if document_id is None else document_id)

    @property
    def document_point(self) -> PointId:
        """The point id of the document, of which this may be a chunk."""
        chunk = chunk_in(self.payload)
        return self.id if chunk is None else chunk["document"]


@dataclass(frozen=True)
class SearchResult(Sequence[Hit]):
    """Hits, best first. `seconds` has the time spent in `embed`, `qdrant` and `rerank`.

    `points` is the number that Qdrant returned, of which a document may have several.
    """

    hits: list[Hit]
    seconds: dict[str, float]
    tokens: int
    points: int

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> list[Hit]: ...
    def __getitem__(self, index: int | slice) -> Hit | list[Hit]:
        return self.hits[index]
