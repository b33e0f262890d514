"""Write documents as points. Used by `index` and `migrate`.

    documents → stale_documents (payload differs from the stored one) → embed_iter → upsert

A point is current if its payload equals the document's: the text is part of the payload, and
Qdrant writes the payload and vectors of a point atomically. A killed run therefore needs no saved
state, and a second run over the same documents writes nothing. `embed_iter` sends its
requests in threads, so the next batches are embedded while one is written.
"""

from __future__ import annotations

import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, TypeVar

from qdrant_client import models

from bge_client import Client, Embedding, WorkerError

from .documents import Document, check_uuid_notation, payload_uuid
from .metadata import CollectionMetadata
from .schema import COLBERT_CUT, is_colbert_cut, point_vectors
from .store import Payload, PointId, Store

PAGE = 256  # points per lookup or write
BATCH_BYTES = 16_000_000  # per write; the server's limit is 32 MB
FLOAT_BYTES = 11  # a rounded float and its comma in JSON
Progress = Callable[[int], object]
MAX_REPORTED_IDS = 1_000
T = TypeVar("T")
P = TypeVar("P", models.PointStruct, models.PointVectors)


def no_progress(_: int) -> None:
    """Ignore progress."""


@dataclass
class IdSummary:
    """The number of ids, and the first of them, each with a reason or an empty string."""

    count: int = 0
    first: dict[str, str] = field(default_factory=dict)

    def add(self, id: PointId, reason: str = "") -> None:
        self.count += 1
        if len(self.first) < MAX_REPORTED_IDS:
            self.first[str(id)] = reason

    def merge(self, part: IdSummary) -> None:
        self.count += part.count
        left = MAX_REPORTED_IDS - len(self.first)
        self.first.update(islice(part.first.items(), left))


@dataclass
class SyncReport:
    """Counts of points. `truncated` and `colbert_cut` are points whose texts were too long."""

    unchanged: int = 0
    written: int = 0
    truncated: IdSummary = field(default_factory=IdSummary)
    colbert_cut: IdSummary = field(default_factory=IdSummary)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def merge(self, part: SyncReport) -> None:
        """Add the counts of a part of the points."""
        self.unchanged += part.unchanged
        self.written += part.written
        self.truncated.merge(part.truncated)
        self.colbert_cut.merge(part.colbert_cut)


def sync(
    store: Store,
    client: Client,
    collection: str,
    metadata: CollectionMetadata,
    documents: Iterable[Document],
    report: SyncReport,
    progress: Progress = no_progress,
) -> None:
    """Write the documents that are not current, and count them in `report`. Memory is bounded.

    Raises:
        FingerprintError: the endpoint serves another model than the collection's.
        BGEError: see `errors.py`. Written points stay; run it again to resume.
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
    """Like `sync`, but yield each batch before it is written."""
    in_flight: Counter[PointId] = Counter()
    pending = stale_documents(store, collection, documents, report, in_flight, progress)
    points = (
        make_point(document.id, document.payload, embedding, metadata, report)
        for document, embedding in embed_documents(client, pending, collection, metadata)
    )
    for batch in batches(points):
        yield batch
        store.upsert(collection, batch)
        in_flight.subtract(point.id for point in batch)
        report.written += len(batch)
        progress(len(batch))


def stale_documents(
    store: Store,
    collection: str,
    documents: Iterable[Document],
    report: SyncReport,
    in_flight: Counter[PointId],
    progress: Progress = no_progress,
) -> Iterator[Document]:
    """Yield documents whose point is missing or differs, now or after the writes in flight."""
    uuids: dict[PointId, str] = {}  # of documents in flight, in their own notation
    for page in pages(_check_notations(documents, uuids), PAGE):
        latest = {document.id: document for document in page}
        # `index` creates a collection before the first write, and lookups come earlier.
        stored = store.payloads(collection, [*latest]) if store.exists(collection) else {}
        unchanged_before = report.unchanged
        for document in latest.values():
            check_uuid_notation(document, payload_uuid(stored.get(document.id, {})))
            if not in_flight[document.id] and is_current(stored.get(document.id), document.payload):
                report.unchanged += 1
            else:
                in_flight[document.id] += 1
                yield document
        in_flight += Counter()  # drops zero counts
        for id in [id for id in uuids if not in_flight[id]]:
            del uuids[id]
        progress(report.unchanged - unchanged_before + len(page) - len(latest))


def _check_notations(
    documents: Iterable[Document], uuids: dict[PointId, str]
) -> Iterator[Document]:
    """Raises ValidationError if an `_id` repeats an earlier UUID in another notation."""
    for document in documents:
        if document.uuid is not None:
            check_uuid_notation(document, uuids.setdefault(document.id, document.uuid))
        yield document


def is_current(stored: Payload | None, payload: Payload) -> bool:
    return stored is not None and json_equal(strip_flag(stored), strip_flag(payload))


def strip_flag(payload: Payload) -> dict[str, Any]:
    return {key: value for key, value in payload.items() if key != COLBERT_CUT}


def json_equal(left: Any, right: Any) -> bool:
    """Like `==`, but true differs from 1, as in a filter, and floats may differ in the last digit,
    because Qdrant's server does not return every float exactly."""
    if isinstance(left, dict) and isinstance(right, dict):
        same_keys = left.keys() == right.keys()
        return same_keys and all(json_equal(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(json_equal, left, right))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-14) or (math.isnan(left) and math.isnan(right))
    return bool(left == right)


def pages(
    items: Iterable[T], size: int, bytes_of: Callable[[T], int] = lambda _: 0
) -> Iterator[list[T]]:
    """Yield lists of up to `size` items and `BATCH_BYTES`, but of at least one item.

    If an item raises, yield the items before it first.
    """
    page: list[T] = []
    total = 0
    try:
        for item in items:
            item_bytes = bytes_of(item)
            if page and (len(page) == size or total + item_bytes > BATCH_BYTES):
                yield page
                page, total = [], 0
            page.append(item)
            total += item_bytes
    except Exception:
        if page:
            yield page
        raise
    if page:
        yield page


def embed_documents(
    client: Client, documents: Iterable[Document], collection: str, metadata: CollectionMetadata
) -> Iterator[tuple[Document, Embedding]]:
    """Yield each document with the vectors that the collection holds, in order.

    Raises:
        WorkerError: the worker refused a text. The message names its document.
    """
    pending: deque[Document] = deque()
    done = 0

    def texts() -> Iterator[str]:
        for document in documents:
            pending.append(document)
            yield document.text

    embeddings = client.embed_iter(
        texts(), sparse=True, colbert=metadata.colbert, max_length=metadata.max_length
    )
    try:
        with closing(embeddings):
            for embedding in embeddings:
                metadata.check_fingerprint(embedding.fingerprint, collection)
                done += 1
                yield pending.popleft(), embedding
    except WorkerError as error:
        index = len(pending) if error.index is None else error.index - done
        if 0 <= index < len(pending):
            error.args = (f"document {pending[index].id}: {error}",)  # keeps the other attributes
        raise


def make_point(
    id: PointId,
    payload: Payload,
    embedding: Embedding,
    metadata: CollectionMetadata,
    report: SyncReport,
) -> models.PointStruct:
    """Return a document as a point, and count in `report` what its vectors lack.

    Raises:
        ProtocolError: a vector is not finite.
    """
    payload = strip_flag(payload)
    if embedding.truncated:
        report.truncated.add(id)
    if is_colbert_cut(embedding, metadata):
        report.colbert_cut.add(id)
        payload = {**payload, COLBERT_CUT: True}
    return models.PointStruct(id=id, vector=point_vectors(embedding, metadata), payload=payload)


def batches(points: Iterable[P]) -> Iterator[list[P]]:
    """Yield lists of points that fit into one write."""
    return pages(points, PAGE, _estimated_bytes)


def _estimated_bytes(point: models.PointStruct | models.PointVectors) -> int:
    """Estimate the size of a point in a request."""
    vectors: dict[str, Any] = point.vector  # type: ignore[assignment]
    floats = sum(_float_count(vector) for vector in vectors.values())
    payload = point.payload if isinstance(point, models.PointStruct) else None
    return FLOAT_BYTES * floats + len(json.dumps(payload, default=str))


def _float_count(vector: Any) -> int:
    if isinstance(vector, models.SparseVector):
        return 2 * len(vector.indices)
    return sum(map(len, vector)) if vector and isinstance(vector[0], list) else len(vector)
