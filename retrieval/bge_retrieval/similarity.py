"""Compare stored vectors with new ones of the same texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from bge_client import Client

from .documents import Document
from .metadata import CollectionMetadata
from .store import PointId, Store
from .sync import pages

MIN_COSINE = 0.999  # of vectors of the same text, computed in other batches and another dtype
MAX_IDS_IN_MESSAGE = 20
PAGE = 64


def similarities(
    store: Store,
    client: Client,
    collection: str,
    metadata: CollectionMetadata,
    documents: Iterable[Document],
) -> Iterator[tuple[Document, float]]:
    """Yield the cosine of each document's stored and new dense vectors; -1 if none is stored."""
    for page in pages(documents, PAGE):
        ids = [document.id for document in page]
        records = store.retrieve(collection, ids, with_payload=False, with_vectors=True)
        stored = {record.id: dense_vector(record.vector, metadata.dense) for record in records}
        texts = [document.text for document in page]
        result = client.embed(texts, max_length=metadata.max_length)
        metadata.check_fingerprint(result.fingerprint, collection)
        for document, embedding in zip(page, result, strict=True):
            yield document, _cosine(stored.get(document.id), embedding.dense)


def dense_vector(vector: Any, name: str) -> Any:
    """Return a point's dense vector; in a collection of unnamed vectors, its only one."""
    return vector.get(name) if isinstance(vector, dict) else vector


def _cosine(stored: Any, new: Any) -> float:
    if stored is None or len(stored) != len(new):
        return -1.0
    stored = np.asarray(stored, np.float64)
    norms = np.linalg.norm(stored) * np.linalg.norm(new)
    return float(stored @ new / norms) if norms else -1.0


def format_ids(ids: Sequence[PointId]) -> str:
    """Return the first ids, as the end of a message."""
    suffix = f" and {len(ids) - MAX_IDS_IN_MESSAGE} more" if len(ids) > MAX_IDS_IN_MESSAGE else ""
    return f": {', '.join(map(str, ids[:MAX_IDS_IN_MESSAGE]))}{suffix}" if ids else ""


def no_text_message(store: Store, collection: str, fields: Sequence[str]) -> str:
    """Return the error for a collection without texts at `fields`, with a sample of its keys."""
    keys = sorted({key for point in store.sample(collection, PAGE) for key in point.payload or {}})
    return (
        f"no point of `{collection}` has a text at `{'`, `'.join(fields)}`. Their payloads have: "
        f"{', '.join(keys[:MAX_IDS_IN_MESSAGE]) or 'nothing'}. Pass --text-field"
    )
