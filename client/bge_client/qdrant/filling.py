"""Documents → vectors → points: the one way by which `index` and `migrate` fill a collection.

    documents → stale (those whose payload differs from what is stored) → embed_iter → upsert

A point is current when its payload is the one we would write: the text is part of it, and Qdrant
writes payload and vectors of a point as one. So a run that was killed needs no notes of its own:
the next one finds what is done by looking, and a second run over the same documents writes nothing.
Requests for vectors run in threads of their own: while one batch is written, the next are embedded.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qdrant_client import models

from ..client import Client
from ..results import Embedding
from .documents import Document
from .schema import COLBERT_CUT, Binding, is_colbert_cut, point_vectors
from .store import Payload, PointId, Store

PAGE = 256  # points looked up or written at once
BATCH_BYTES = 16_000_000  # of a write; Qdrant's server takes 32 MB
FLOAT_BYTES = 11  # of a rounded float and its comma, in JSON
Progress = Callable[[int], object]
T = TypeVar("T")


def quietly(_: int) -> None:
    """Progress that nobody watches."""


@dataclass
class Filled:
    """What has been done. `truncated` and `colbert_cut` name points whose texts were too long."""

    unchanged: int = 0
    written: int = 0
    truncated: list[PointId] = field(default_factory=list)
    colbert_cut: list[PointId] = field(default_factory=list)


def fill(
    store: Store,
    client: Client,
    collection: str,
    binding: Binding,
    documents: Iterable[Document],
    filled: Filled,
    progress: Progress = quietly,
) -> None:
    """Write those documents that are not current, counting in `filled`; any number, bounded memory.

    Raises:
        FingerprintError: the endpoint's vectors do not belong into this collection.
        BGEError: see `errors.py`. What was written stays; run it again.
    """
    pending = stale(store, collection, documents, filled, progress)
    points = (
        _point(document, found, binding, filled)
        for document, found in embedded(client, pending, collection, binding)
    )
    for batch in _batches(points):
        store.upsert(collection, batch)
        filled.written += len(batch)
        progress(len(batch))


def stale(
    store: Store,
    collection: str,
    documents: Iterable[Document],
    filled: Filled,
    progress: Progress = quietly,
) -> Iterator[Document]:
    """Those whose point is missing, or has another payload."""
    for page in pages(documents, PAGE):
        there = store.payloads(collection, [document.id for document in page])
        before = filled.unchanged
        for document in page:
            if is_current(there.get(document.id), document.payload):
                filled.unchanged += 1
            else:
                yield document
        progress(filled.unchanged - before)


def is_current(stored: Payload | None, payload: Payload) -> bool:
    return stored is not None and without_flag(stored) == payload


def without_flag(stored: Payload) -> dict[str, Any]:
    return {key: value for key, value in stored.items() if key != COLBERT_CUT}


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
    client: Client, documents: Iterable[Document], collection: str, binding: Binding
) -> Iterator[tuple[Document, Embedding]]:
    """Each with all vectors that the collection holds, in their order."""
    ahead: deque[Document] = deque()

    def texts() -> Iterator[str]:
        for document in documents:
            ahead.append(document)
            yield document.text

    found = client.embed_iter(
        texts(), sparse=True, colbert=binding.colbert, max_length=binding.max_length
    )
    with closing(found):
        for vectors in found:
            binding.check(vectors.fingerprint, collection)
            yield ahead.popleft(), vectors


def _point(
    document: Document, found: Embedding, binding: Binding, filled: Filled
) -> models.PointStruct:
    payload = document.payload
    if found.truncated:
        filled.truncated.append(document.id)
    if is_colbert_cut(found, binding):
        filled.colbert_cut.append(document.id)
        payload = {**payload, COLBERT_CUT: True}
    return models.PointStruct(id=document.id, vector=point_vectors(found, binding), payload=payload)


def _batches(points: Iterable[models.PointStruct]) -> Iterator[list[models.PointStruct]]:
    """Bounded by points and by bytes; a point too large for any batch goes alone."""
    batch: list[models.PointStruct] = []
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
        if batch:  # what came before the one that failed
            yield batch
        raise
    if batch:
        yield batch


def _bytes(point: models.PointStruct) -> int:
    """In a request, about."""
    vectors: dict[str, Any] = point.vector  # type: ignore[assignment]
    floats = sum(_count(vector) for vector in vectors.values())
    return FLOAT_BYTES * floats + len(json.dumps(point.payload, default=str))


def _count(vector: Any) -> int:
    if isinstance(vector, models.SparseVector):
        return 2 * len(vector.indices)
    return sum(map(len, vector)) if vector and isinstance(vector[0], list) else len(vector)
