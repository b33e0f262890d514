"""The source and the target of a migration, and the points in which they differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..documents import Document, usable_text
from ..store import Payload, PointId, Store
from ..sync import PAGE, is_current, pages


@dataclass(frozen=True)
class CollectionPair:
    """Two collections of one store. The text of a source's point is at `text_fields`."""

    store: Store
    source: str
    target: str
    text_fields: tuple[str, ...]

    def usable_text(self, payload: Payload) -> tuple[str | None, str]:
        """Return the text of a point, or None and the reason why there is none."""
        return usable_text(payload, self.text_fields)

    def counts_match(self) -> bool:
        return self.store.count(self.source) == self.store.count(self.target)

    def differing(self) -> Iterator[PointId]:
        """Yield points of the source that are missing or have another payload in the target."""
        for records in self.store.scroll(self.source):
            yield from self._differing({record.id: record.payload or {} for record in records})

    def still_differing(self, ids: Iterable[PointId]) -> Iterator[PointId]:
        """Yield those of `ids` that the source has and whose payload differs in the target."""
        for page in pages(ids, PAGE):
            yield from self._differing(self.store.payloads(self.source, page))

    def _differing(self, source: Mapping[PointId, Payload]) -> list[PointId]:
        stored = self.store.payloads(self.target, [*source])
        return [id for id, payload in source.items() if not is_current(stored.get(id), payload)]

    def only_in_target(self) -> Iterator[PointId]:
        for records in self.store.scroll(self.target, with_payload=False):
            ids = [record.id for record in records]
            source_records = self.store.retrieve(self.source, ids, with_payload=False)
            yield from set(ids) - {record.id for record in source_records}

    def missing_in_target(self, ids: Iterable[PointId]) -> Iterator[PointId]:
        """Yield those of `ids` that the target lacks."""
        for page in pages(ids, PAGE):
            yield from set(page) - self.store.payloads(self.target, page).keys()

    def source_documents(self, ids: Iterable[PointId]) -> Iterator[Document]:
        """Yield the source's points that have these ids and a text."""
        for page in pages(ids, PAGE):
            for id, payload in self.store.payloads(self.source, page).items():
                text, _ = self.usable_text(payload)
                if text is not None:
                    yield Document(id, text, dict(payload))
