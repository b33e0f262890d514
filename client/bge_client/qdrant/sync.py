"""Documents → vectors → points: the one way by which `index` and `migrate` fill a collection.

    documents → stale (those whose payload differs from what is stored) → embed_iter → upsert

A point is current when its payload is the one we would write: the text is part of it, and Qdrant
writes payload and vectors of a point as one. So a run that was killed needs no notes of its own:
the next one finds what is done by looking, and a second run over the same documents writes nothing.
Requests for vectors run in threads of their own: while one batch is written, the next are embedded.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qdrant_client import models

from ..client import Client
from ..errors import WorkerError
from ..results import Embedding
from .documents import Document, check_notation, uuid_in
from .metadata import CollectionMetadata
from .schema import COLBERT_CUT, is_colbert_cut, point_vectors
from .store import Payload, PointId, Store

PAGE = 256  # points looked up or written at once
BATCH_BYTES = 16_000_000  # of a write; Qdrant's server takes 32 MB
FLOAT_BYTES = 11  # of a rounded float and its comma, in JSON
Progress = Callable[[int], object]
FIRST = 1_000  # ids that a report names
T = TypeVar("T")
P = TypeVar("P", models.PointStruct, models.PointVectors)


def no_progress(_: int) -> None:
    """Progress that nobody watches."""


@dataclass
class Listed:
    """So many ids, and the first of them, each with a reason if there is one."""

    count: int = 0
    first: dict[str, str] = field(default_factory=dict)

    def add(self, id: PointId, reason: str = "") -> None:
        self.count += 1
        if len(self.first) < FIRST:
            self.first[str(id)] = reason

    def __contains__(self, id: object) -> bool:
        return str(id) in self.first


@dataclass
class SyncReport:
    """What has been done. `truncated` and `colbert_cut` are points whose texts were too long."""

    unchanged: int = 0
    written: int = 0
    truncated: Listed = field(default_factory=Listed)
    colbert_cut: Listed = field(default_factory=Listed)


def sync(
    store: Store,
    client: Client,
    collection: str,
    metadata: CollectionMetadata,
    documents: Iterable[Document],
    report: SyncReport,
    progress: Progress = no_progress,
) -> None:
    """Write those documents that are not current, counting in `report`; any number, bounded memory.

    Raises:
        FingerprintError: the endpoint's vectors do not belong into this collection.
        BGEError: see `errors.py`. What was written stays; run it again.
    """
    for _ in sync_by_batches(store, client, collection, metadata, documents, report, progress):
        pass


def sync_by_batches(
    store: Store,
    client: Client,
    collection: str,
    metadata: CollectionMetadata,
    documents: Iterable[Document],
    report: SyncReport,
    progress: Progress = no_progress,
) -> Iterator[list[models.PointStruct]]:
    """Do what `fill` does; yields each batch before it is written."""
    on_the_way: Counter[PointId] = Counter()
    pending = stale(store, collection, documents, report, on_the_way, progress)
    points = (
        _point(document, found, metadata, report)
        for document, found in embedded(client, pending, collection, metadata)
    )
    for batch in batches(points):
        yield batch
        store.upsert(collection, batch)
        on_the_way.subtract(point.id for point in batch)
        report.written += len(batch)
        progress(len(batch))


def stale(
    store: Store,
    collection: str,
    documents: Iterable[Document],
    report: SyncReport,
    on_the_way: Counter[PointId],
    progress: Progress = no_progress,
) -> Iterator[Document]:
    """Those whose point is missing, or has another payload, or will have once it is written."""
    uuids: dict[PointId, str] = {}  # of those on the way, as they were given
    for page in pages(_in_one_notation(documents, uuids), PAGE):
        last = {document.id: document for document in page}
        there = store.payloads(collection, [*last])
        before = report.unchanged
        for document in last.values():
            check_notation(document, uuid_in(there.get(document.id, {})))
            if not on_the_way[document.id] and is_current(there.get(document.id), document.payload):
                report.unchanged += 1
            else:
                on_the_way[document.id] += 1
                yield document
        on_the_way += Counter()  # drops those that have been written
        for id in [id for id in uuids if not on_the_way[id]]:
            del uuids[id]
        progress(report.unchanged - before + len(page) - len(last))


def _in_one_notation(
    documents: Iterable[Document], uuids: dict[PointId, str]
) -> Iterator[Document]:
    """Raises ValidationError: the `_id` of one is that of an earlier one in another notation."""
    for document in documents:
        if document.uuid is not None:
            check_notation(document, uuids.setdefault(document.id, document.uuid))
        yield document


def is_current(stored: Payload | None, payload: Payload) -> bool:
    return stored is not None and same(without_flag(stored), without_flag(payload))


def without_flag(payload: Payload) -> dict[str, Any]:
    return {key: value for key, value in payload.items() if key != COLBERT_CUT}


def same(one: Any, two: Any) -> bool:
    """Whether two JSON values are one. Not `==`: to that true is 1, while a filter tells them
    apart; and Qdrant's server reads some numbers back with another last digit."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, bool) or isinstance(two, bool):
        return one is two
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=1e-14) or (math.isnan(one) and math.isnan(two))
    return bool(one == two)


def pages(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive ones together, lazily; what came before one that fails is still given."""
    page: list[T] = []
    try:
        for item in items:
            page.append(item)
            if len(page) == size:
                yield page
                page = []
    except Exception:
        if page:
            yield page
        raise
    if page:
        yield page


def embedded(
    client: Client, documents: Iterable[Document], collection: str, metadata: CollectionMetadata
) -> Iterator[tuple[Document, Embedding]]:
    """Each with all vectors that the collection holds, in their order.

    Raises:
        WorkerError: a text that the worker does not take; names its document.
    """
    ahead: deque[Document] = deque()
    taken = 0

    def texts() -> Iterator[str]:
        for document in documents:
            ahead.append(document)
            yield document.text

    found = client.embed_iter(
        texts(), sparse=True, colbert=metadata.colbert, max_length=metadata.max_length
    )
    try:
        with closing(found):
            for vectors in found:
                metadata.check(vectors.fingerprint, collection)
                taken += 1
                yield ahead.popleft(), vectors
    except WorkerError as error:
        place = re.search(r"`texts\[(\d+)\]", str(error))
        at = int(place[1]) - taken if place else len(ahead)
        if 0 <= at < len(ahead):
            raise type(error)(f"document {ahead[at].id}: {error}") from None
        raise


def _point(
    document: Document, found: Embedding, metadata: CollectionMetadata, report: SyncReport
) -> models.PointStruct:
    payload = without_flag(document.payload)
    if found.truncated:
        report.truncated.add(document.id)
    if is_colbert_cut(found, metadata):
        report.colbert_cut.add(document.id)
        payload = {**payload, COLBERT_CUT: True}
    return models.PointStruct(
        id=document.id, vector=point_vectors(found, metadata), payload=payload
    )


def batches(points: Iterable[P]) -> Iterator[list[P]]:
    """Bounded by points and by bytes; a point too large for any batch goes alone.

    What came before a point that fails is still given.
    """
    batch: list[P] = []
    total = 0
    try:
        for point in points:
            size = _bytes(point)
            if batch and (len(batch) == PAGE or total + size > BATCH_BYTES):
                yield batch
                batch, total = [], 0
            batch.append(point)
            total += size
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _bytes(point: models.PointStruct | models.PointVectors) -> int:
    """In a request, about."""
    vectors: dict[str, Any] = point.vector  # type: ignore[assignment]
    floats = sum(_count(vector) for vector in vectors.values())
    payload = point.payload if isinstance(point, models.PointStruct) else None
    return FLOAT_BYTES * floats + len(json.dumps(payload, default=str))


def _count(vector: Any) -> int:
    if isinstance(vector, models.SparseVector):
        return 2 * len(vector.indices)
    return sum(map(len, vector)) if vector and isinstance(vector[0], list) else len(vector)
