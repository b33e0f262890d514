"""Add sparse and ColBERT vectors to a collection that holds bge-m3's dense vectors.

Only this module writes to a collection that another program created. It adds vectors and replaces
nothing. Adding a named vector needs Qdrant 1.18.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from qdrant_client import models

from bge_client import Client, ConfigurationError, Embedding, FingerprintError, HTTPStatusError

from ..documents import Document, usable_text
from ..metadata import METADATA, CollectionMetadata
from ..schema import COLBERT, COLBERT_CUT, MAX_SIM, SPARSE, extra_vectors, is_colbert_cut
from ..similarity import MIN_COSINE, format_ids, no_text_message, similarities
from ..store import PointId, Store
from ..sync import IdSummary, Progress, SyncReport, batches, embed_documents, no_progress

SAMPLE_SIZE = 256  # points whose dense vectors are recomputed first
MIN_MATCHING = 0.95  # of the sample; some texts may have changed since they were embedded


@dataclass
class InPlaceReport(SyncReport):
    """`without_text` are points that were skipped, `differing` points of the sample whose dense
    vector differs from a new one of their text."""

    collection: str = ""
    dense: str = ""
    compared: int = 0
    differing: list[PointId] = field(default_factory=list)
    without_text: IdSummary = field(default_factory=IdSummary)


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
    """Check a sample of the dense vectors against the endpoint, then add the missing vectors.

    `dense` names the dense vector if several have the right size. A BGE collection can get ColBERT
    vectors this way. Any other collection gets its metadata last. After a kill, run it again. A
    text that changes during the run, without its vectors, may keep an outdated sparse vector.

    Raises:
        FingerprintError: the dense vectors are those of another model.
        ConfigurationError: no vector, or more than one, has the right size.
    """
    collection = store.resolve(collection)
    metadata = _target_metadata(store, client, collection, dense, text_fields, colbert, max_length)
    report = InPlaceReport(collection=collection, dense=metadata.dense)
    _check_dense(store, client, collection, metadata, report)
    _create_missing_names(store, collection, metadata)
    documents = _incomplete_documents(store, collection, metadata, report)
    vectors = (
        _point_vectors(store, collection, document, embedding, metadata, report)
        for document, embedding in embed_documents(client, documents, collection, metadata)
    )
    for batch in batches(vectors):
        store.add_vectors(collection, batch)
        report.written += len(batch)
        progress(len(batch))
    metadata.save(store, collection)
    return report


def _target_metadata(
    store: Store,
    client: Client,
    collection: str,
    dense: str | None,
    text_fields: Sequence[str] | None,
    colbert: bool,
    max_length: int | None,
) -> CollectionMetadata:
    """Return the stored metadata of a BGE collection, or new metadata; `colbert` may be added."""
    probed = CollectionMetadata.probe(client, colbert=colbert, max_length=max_length)
    if METADATA in (store.info(collection).config.metadata or {}):
        stored = CollectionMetadata.load(store, collection)
        stored.check_fingerprint(probed.fingerprint, collection)
        fields = text_fields and tuple(text_fields)
        stored.check_options(collection, dense=dense, text_fields=fields, max_length=max_length)
        return replace(stored, colbert=stored.colbert or colbert)
    name = dense if dense is not None else _find_dense_name(store, collection, probed.dimensions)
    return replace(probed, dense=name, text_fields=tuple(text_fields or ("text",)))


def _point_vectors(
    store: Store,
    collection: str,
    document: Document,
    embedding: Embedding,
    metadata: CollectionMetadata,
    report: InPlaceReport,
) -> models.PointVectors:
    if embedding.truncated:
        report.truncated.add(document.id)
    if is_colbert_cut(embedding, metadata):
        report.colbert_cut.add(document.id)
        store.set_payload(collection, [document.id], {COLBERT_CUT: True})
    return models.PointVectors(id=document.id, vector=extra_vectors(embedding, metadata))


def _find_dense_name(store: Store, collection: str, dimensions: int) -> str:
    """Return the name of the only dense vector of this size; empty for an unnamed vector."""
    vectors = store.info(collection).config.params.vectors
    by_name = vectors if isinstance(vectors, dict) else {"": vectors}
    names = [
        name
        for name, params in by_name.items()
        if params is not None and params.size == dimensions and params.multivector_config is None
    ]
    if len(names) != 1:
        raise ConfigurationError(
            f"collection `{collection}` has {len(names)} dense vectors of {dimensions} "
            f"dimensions{': ' if names else ''}{', '.join(names)}. Name the one of bge-m3"
        )
    return names[0]


def _check_dense(
    store: Store,
    client: Client,
    collection: str,
    metadata: CollectionMetadata,
    report: InPlaceReport,
) -> None:
    """Raises FingerprintError if stored vectors of a sample differ from new ones."""
    documents = list(islice(_sample(store, collection, metadata), SAMPLE_SIZE))
    if not documents:
        raise ConfigurationError(no_text_message(store, collection, metadata.text_fields))
    cosines = similarities(store, client, collection, metadata, documents)
    report.differing = [document.id for document, cosine in cosines if cosine < MIN_COSINE]
    report.compared = len(documents)
    differing = len(report.differing)
    if differing > (1 - MIN_MATCHING) * len(documents):
        raise FingerprintError(
            f"of {len(documents)} dense vectors of `{collection}`, {differing} differ from those "
            f"of {metadata.model}{format_ids(report.differing)}. Nothing was changed. "
            f"Run `bge migrate {collection} NEW` to build a new collection from the texts"
        )


def _create_missing_names(store: Store, collection: str, metadata: CollectionMetadata) -> None:
    """Add the named vectors that the collection lacks."""
    existing = _vector_names(store, collection)
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
    for name in _required_names(metadata):
        if name in existing:
            continue
        try:
            store.create_vector_name(collection, name, configs[name])
        except HTTPStatusError:  # created, but the response was lost
            if name not in _vector_names(store, collection):
                raise


def _vector_names(store: Store, collection: str) -> set[str]:
    params = store.info(collection).config.params
    dense = {*params.vectors} if isinstance(params.vectors, dict) else set()
    return dense | {*(params.sparse_vectors or {})}


def _required_names(metadata: CollectionMetadata) -> list[str]:
    return [SPARSE, COLBERT] if metadata.colbert else [SPARSE]


def _incomplete_documents(
    store: Store, collection: str, metadata: CollectionMetadata, report: InPlaceReport
) -> Iterator[Document]:
    """Yield points with text that lack a required vector."""
    conditions: list[models.Condition] = [
        models.Filter(must_not=[models.HasVectorCondition(has_vector=name)])
        for name in _required_names(metadata)
    ]
    for records in store.scroll(collection, scroll_filter=models.Filter(should=conditions)):
        for record in records:
            text, problem = usable_text(record.payload or {}, metadata.text_fields)
            if text is None:
                report.without_text.add(record.id, problem)
            else:
                yield Document(record.id, text, record.payload or {})


def _sample(store: Store, collection: str, metadata: CollectionMetadata) -> Iterator[Document]:
    """Yield the points with text of a random sample."""
    for point in store.sample(collection, SAMPLE_SIZE):
        text, _ = usable_text(point.payload or {}, metadata.text_fields)
        if text is not None:
            yield Document(point.id, text, point.payload or {})
