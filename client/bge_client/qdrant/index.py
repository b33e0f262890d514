"""Any number of documents into a collection: resumable, and a second time at no cost."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..client import Client
from .documents import parse_documents
from .metadata import CollectionMetadata
from .schema import Schema
from .store import Store
from .sync import Progress, SyncReport, no_progress, sync


@dataclass
class IndexReport(SyncReport):
    """What `index` did, and in how many seconds."""

    collection: str = ""
    fingerprint: str = ""
    seconds: float = field(default=0.0)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def index(
    store: Store,
    client: Client,
    collection: str,
    documents: Iterable[Mapping[str, Any] | str],
    *,
    text_fields: Sequence[str] | None = None,
    schema: Schema | None = None,
    max_length: int | None = None,
    progress: Progress = no_progress,
) -> IndexReport:
    """Embed documents and write them as points; those that are there already are left alone.

    A document is a mapping, or a line of JSON that is one: it becomes the payload. Its text is at
    `text_fields` (paths like `page.content`; several are joined by a line break; by default
    `text`), its point's id is made of `_id` or `id`, or else of all it holds. The collection is
    made if there is none; `schema` is for that moment. Where documents share an id, the last one
    stays. `progress` is called with numbers of documents that are done.

    Raises:
        ValidationError: a document has no text or no usable id; those before it are written.
        FingerprintError: the collection holds another model's vectors.
        ConfigurationError: it was made with other options.
        BGEError: see `errors.py`. What was written stays; run it again to go on.
    """
    start = time.monotonic()
    collection = store.resolve(collection)
    schema = schema or Schema()
    requested = CollectionMetadata.probe(
        client,
        colbert=schema.colbert,
        max_length=max_length,
        text_fields=tuple(text_fields or ("text",)),
    )
    metadata = schema.ensure(store, collection, requested)
    metadata.check_options(
        collection,
        colbert=schema.colbert or None,
        max_length=max_length,
        text_fields=text_fields and tuple(text_fields),
    )
    report = IndexReport(collection=collection, fingerprint=metadata.fingerprint)
    parsed = parse_documents(documents, metadata.text_fields)
    sync(store, client, collection, metadata, parsed, report, progress)
    report.seconds = time.monotonic() - start
    return report
