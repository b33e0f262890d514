"""Index documents. A run can be resumed, and a second run writes nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bge_client import Client, ConfigurationError

from .chunks import TEXT_FIELD, Chunker, cut_documents
from .documents import parse_documents
from .metadata import CollectionMetadata, ensure_probe
from .schema import Schema
from .store import Store
from .sync import Progress, SyncReport, no_progress, sync_by_batches


@dataclass
class IndexReport(SyncReport):
    """The counts and the duration of `index`."""

    collection: str = ""
    fingerprint: str = ""
    seconds: float = 0.0


def index(
    store: Store,
    client: Client,
    collection: str,
    documents: Iterable[Mapping[str, object] | str],
    *,
    text_fields: Sequence[str] | None = None,
    schema: Schema | None = None,
    max_length: int | None = None,
    chunker: Chunker | None = None,
    progress: Progress = no_progress,
) -> IndexReport:
    """Embed documents and write them as points. Skips documents that are already indexed.

    A document is a mapping or a JSON object on one line; it becomes the payload. Its text is at
    `text_fields` (paths such as `page.content`, joined by line breaks; default `text`). Its point
    id is derived from `_id`, `id` or the whole payload; of documents with the same id, the last
    one is kept. A missing collection is created with `schema` before the first write, so a run
    without a write leaves none. A run that is killed between the two leaves an empty one, which
    the next run fills. With a `chunker`, each chunk of a document is a point.
    `progress` is called with the number of points done since its last call.

    Raises:
        ValidationError: a document has no text or an invalid id. Those before it are written.
        FingerprintError: the collection holds vectors of another model.
        ConfigurationError: the collection was created with other options.
        BGEError: see `errors.py`. Written points stay; run it again to resume.
    """
    if isinstance(documents, str | bytes | os.PathLike):
        raise ConfigurationError("`documents` must be an iterable of documents, not a path")
    start = time.monotonic()
    collection = store.resolve(collection)
    schema = schema or Schema()
    fields = tuple(text_fields or ("text",))
    requested = CollectionMetadata.probe(
        client,
        colbert=schema.colbert,
        max_length=max_length,
        text_fields=(TEXT_FIELD,) if chunker else fields,
        chunks=chunker.metadata(fields) if chunker else None,
    )
    is_new = not store.exists(collection)
    metadata = requested if is_new else schema.ensure(store, collection, requested)
    metadata.check_options(
        collection,
        colbert=schema.colbert or None,
        max_length=max_length,
        text_fields=text_fields and requested.text_fields,
    )
    if metadata.chunks != requested.chunks:
        raise ConfigurationError(
            f"collection `{collection}` was created with `chunks` {metadata.chunks}. "
            f"Given: {requested.chunks}"
        )
    if not is_new:  # a run may have been killed before it recorded the probe
        ensure_probe(store, client, collection, metadata.fingerprint)
    report = IndexReport(collection=collection, fingerprint=metadata.fingerprint)
    parsed = parse_documents(documents, fields if chunker else metadata.text_fields)
    if chunker:
        parsed = cut_documents(store, collection, parsed, chunker, fields)
    for _ in sync_by_batches(store, client, collection, metadata, parsed, report, progress):
        if is_new:
            if schema.ensure(store, collection, requested) != requested:
                raise ConfigurationError(
                    f"another process has created `{collection}` with other options. Run it again"
                )
            ensure_probe(store, client, collection, metadata.fingerprint)
        is_new = False
    report.seconds = time.monotonic() - start
    return report
