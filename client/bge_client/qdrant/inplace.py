"""Sparse (and ColBERT) vectors for a collection that already holds bge-m3's dense ones.

The only writing to a collection somebody else made: vectors are added, nothing is replaced. Wants
Qdrant 1.18 for a new vector name in an old collection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

from qdrant_client import models

from ..client import Client
from ..errors import ConfigurationError, FingerprintError, HTTPStatusError
from ..results import Embedding
from .documents import Document, usable_text
from .metadata import METADATA, CollectionMetadata
from .schema import (
    COLBERT,
    COLBERT_CUT,
    MAX_SIM,
    SPARSE,
    extra_vectors,
    is_colbert_cut,
)
from .similarity import SAME, named, no_text, similarities
from .store import PointId, Store
from .sync import Listed, Progress, SyncReport, batches, embedded, no_progress

SAMPLE = 256  # points whose dense vectors are computed again first
MATCHING = 0.95  # of them that must match: some texts may have changed since


@dataclass
class InPlaceReport(SyncReport):
    """What was done; `without_text` are points left as they were, `differing` those of the sample
    whose dense vector is not what the model makes of their text now."""

    collection: str = ""
    dense: str = ""
    compared: int = 0
    differing: list[PointId] = field(default_factory=list)
    without_text: Listed = field(default_factory=Listed)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def add_in_place(
    store: Store,
    client: Client,
    collection: str,
    *,
    dense: str | None = None,
    text_fields: Sequence[str] | None = None,
    colbert: bool = False,
    max_length: int | None = None,
    progress: Progress = no_progress,
) -> InPlaceReport:
    """Check that a sample of the dense vectors is the endpoint's own, then add what is missing.

    `dense` is their name, if there are several of that size. A collection of ours gets ColBERT
    vectors this way. Any other does not say that it is ours until all is done. Killed at any
    moment: run it again. A text that is changed without its vectors while this runs may keep the
    sparse vector of the old one.

    Raises:
        FingerprintError: the dense vectors are not those of the endpoint's model.
        ConfigurationError: there are none of its size, or several.
    """
    collection = store.resolve(collection)
    metadata = _metadata(store, client, collection, dense, text_fields, colbert, max_length)
    report = InPlaceReport(collection=collection, dense=metadata.dense)
    _check_dense(store, client, collection, metadata, report)
    _add_names(store, collection, metadata)
    missing = _documents(store, collection, metadata, report, lacking=_wanted(metadata))
    vectors = (
        _vectors(store, collection, document, found, metadata, report)
        for document, found in embedded(client, missing, collection, metadata)
    )
    for batch in batches(vectors):
        store.add_vectors(collection, batch)
        report.written += len(batch)
        progress(len(batch))
    metadata.save(store, collection)
    return report


def _metadata(
    store: Store,
    client: Client,
    collection: str,
    dense: str | None,
    text_fields: Sequence[str] | None,
    colbert: bool,
    max_length: int | None,
) -> CollectionMetadata:
    """Of a collection of ours its own, to which ColBERT may be added; else a new one."""
    asked = CollectionMetadata.probe(client, colbert=colbert, max_length=max_length)
    if METADATA in (store.info(collection).config.metadata or {}):
        ours = CollectionMetadata.of(store, collection)
        ours.check(asked.fingerprint, collection)
        fields = text_fields and tuple(text_fields)
        ours.check_options(collection, dense=dense, text_fields=fields, max_length=max_length)
        return replace(ours, colbert=ours.colbert or colbert)
    name = dense if dense is not None else _dense_name(store, collection, asked.dimensions)
    return replace(asked, dense=name, text_fields=tuple(text_fields or ("text",)))


def _vectors(
    store: Store,
    collection: str,
    document: Document,
    found: Embedding,
    metadata: CollectionMetadata,
    report: InPlaceReport,
) -> models.PointVectors:
    if found.truncated:
        report.truncated.add(document.id)
    if is_colbert_cut(found, metadata):
        report.colbert_cut.add(document.id)
        store.set_payload(collection, [document.id], {COLBERT_CUT: True})
    return models.PointVectors(id=document.id, vector=extra_vectors(found, metadata))


def _dense_name(store: Store, collection: str, dimensions: int) -> str:
    """Of the only dense vector of this size; the empty name if vectors have none."""
    vectors = store.info(collection).config.params.vectors
    listed = vectors if isinstance(vectors, dict) else {"": vectors}
    fitting = [
        name
        for name, params in listed.items()
        if params is not None and params.size == dimensions and params.multivector_config is None
    ]
    if len(fitting) != 1:
        raise ConfigurationError(
            f"collection `{collection}` has {len(fitting)} dense vectors of {dimensions} "
            f"dimensions{': ' if fitting else ''}{', '.join(fitting)}. Say which one is bge-m3's"
        )
    return fitting[0]


def _check_dense(
    store: Store,
    client: Client,
    collection: str,
    metadata: CollectionMetadata,
    report: InPlaceReport,
) -> None:
    """Raises FingerprintError: a sample of the stored vectors is not what the model makes now."""
    documents = list(islice(_random(store, collection, metadata), SAMPLE))
    if not documents:
        raise ConfigurationError(no_text(store, collection, metadata.text_fields))
    found = similarities(store, client, collection, metadata, documents)
    report.differing = [document.id for document, cosine in found if cosine < SAME]
    report.compared = len(documents)
    wrong = len(report.differing)
    if wrong > (1 - MATCHING) * len(documents):
        raise FingerprintError(
            f"of {len(documents)} dense vectors of `{collection}`, {wrong} are not what "
            f"{metadata.model} makes of their texts{named(report.differing)}. Nothing was changed. "
            f"`bge migrate {collection} NEW` makes a new collection from the texts"
        )


def _add_names(store: Store, collection: str, metadata: CollectionMetadata) -> None:
    """The vectors' names, where they are missing."""
    there = _names(store, collection)
    configs: dict[str, Any] = {
        SPARSE: models.SparseVectorNameConfig(sparse=models.SparseVectorConfig()),
        COLBERT: models.DenseVectorNameConfig(
            dense=models.DenseVectorConfig(
                size=metadata.dimensions,
                distance=models.Distance.COSINE,
                multivector_config=MAX_SIM,
                datatype=models.VectorStorageDatatype.FLOAT16,
            )
        ),
    }
    for name in _wanted(metadata):
        if name in there:
            continue
        try:
            store.create_vector_name(collection, name, configs[name])
        except HTTPStatusError:  # made, and the answer was lost
            if name not in _names(store, collection):
                raise


def _names(store: Store, collection: str) -> set[str]:
    params = store.info(collection).config.params
    dense = {*params.vectors} if isinstance(params.vectors, dict) else set()
    return dense | {*(params.sparse_vectors or {})}


def _wanted(metadata: CollectionMetadata) -> list[str]:
    return [SPARSE, COLBERT] if metadata.colbert else [SPARSE]


def _documents(
    store: Store,
    collection: str,
    metadata: CollectionMetadata,
    report: InPlaceReport,
    lacking: Sequence[str],
) -> Iterator[Document]:
    """Points with text that lack one of these vectors."""
    lacks: list[models.Condition] = [
        models.Filter(must_not=[models.HasVectorCondition(has_vector=name)]) for name in lacking
    ]
    for records in store.scroll(collection, scroll_filter=models.Filter(should=lacks)):
        for record in records:
            text, fault = usable_text(record.payload or {}, metadata.text_fields)
            if text is None:
                report.without_text.add(record.id, fault)
            else:
                yield Document(record.id, text, record.payload or {})


def _random(store: Store, collection: str, metadata: CollectionMetadata) -> Iterator[Document]:
    """Points with text of a random sample."""
    for point in store.sample(collection, SAMPLE):
        text, _ = usable_text(point.payload or {}, metadata.text_fields)
        if text is not None:
            yield Document(point.id, text, point.payload or {})
