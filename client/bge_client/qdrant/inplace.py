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
from .documents import Document, fault_of, text_at
from .filling import Progress, embedded, pages, quietly
from .schema import COLBERT, MAX_SIM, SPARSE, Binding, extra_vectors
from .similarity import SAME, named, similarities
from .store import PointId, Store

PAGE = 64  # points written at once; ColBERT's vectors are large
SAMPLE = 64  # points whose dense vectors are computed again first
MATCHING = 0.95  # of them that must match: some texts may have changed since


@dataclass
class InPlaceReport:
    """What was done; `without_text` names points left as they were."""

    collection: str
    dense: str
    compared: int = 0
    written: int = 0
    without_text: list[PointId] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def add_in_place(
    store: Store,
    client: Client,
    collection: str,
    *,
    dense: str | None = None,
    text_fields: Sequence[str] = ("text",),
    colbert: bool = False,
    max_length: int | None = None,
    progress: Progress = quietly,
) -> InPlaceReport:
    """Check that a sample of the dense vectors is the endpoint's own, then add what is missing.

    `dense` is their name, if there are several of that size. Until all is done the collection does
    not say that it is ours. Killed at any moment: run it again.

    Raises:
        FingerprintError: the dense vectors are not those of the endpoint's model.
        ConfigurationError: there are none of its size, or several.
    """
    collection = store.resolve(collection)
    binding = Binding.probe(
        client, colbert=colbert, max_length=max_length, text_fields=tuple(text_fields)
    )
    name = dense if dense is not None else _dense_name(store, collection, binding.dimensions)
    binding = replace(binding, dense=name)
    report = InPlaceReport(collection, name)
    _check_dense(store, client, collection, binding, report)
    _add_names(store, collection, binding)
    missing = _documents(store, collection, binding, report, lacking=_wanted(binding))
    for page in pages(embedded(client, missing, collection, binding), PAGE):
        points = [
            models.PointVectors(id=document.id, vector=extra_vectors(found, binding))
            for document, found in page
        ]
        store.add_vectors(collection, points)
        report.written += len(points)
        progress(len(points))
    store.ask("update_collection", collection_name=collection, metadata=binding.as_metadata())
    return report


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
    store: Store, client: Client, collection: str, binding: Binding, report: InPlaceReport
) -> None:
    """Raises FingerprintError: a sample of the stored vectors is not what the model makes now."""
    documents = list(islice(_documents(store, collection, binding, InPlaceReport("", "")), SAMPLE))
    if not documents:
        raise ConfigurationError(
            f"collection `{collection}` has no text at `{'`, `'.join(binding.text_fields)}`"
        )
    found = similarities(store, client, collection, binding, documents)
    wrong = [document.id for document, cosine in found if cosine < SAME]
    report.compared = len(documents)
    if len(wrong) > (1 - MATCHING) * len(documents):
        raise FingerprintError(
            f"of {len(documents)} dense vectors of `{collection}`, {len(wrong)} are not what "
            f"{binding.model} makes of their texts{named(wrong)}. Nothing was changed. "
            f"`bge migrate {collection} NEW` makes a new collection from the texts"
        )


def _add_names(store: Store, collection: str, binding: Binding) -> None:
    """The vectors' names, where they are missing."""
    there = _names(store, collection)
    configs: dict[str, Any] = {
        SPARSE: models.SparseVectorNameConfig(sparse=models.SparseVectorConfig()),
        COLBERT: models.DenseVectorNameConfig(
            dense=models.DenseVectorConfig(
                size=binding.dimensions,
                distance=models.Distance.COSINE,
                multivector_config=MAX_SIM,
            )
        ),
    }
    for name in _wanted(binding):
        if name in there:
            continue
        try:
            store.ask(
                "create_vector_name",
                collection_name=collection,
                vector_name=name,
                vector_name_config=configs[name],
            )
        except HTTPStatusError:  # made, and the answer was lost
            if name not in _names(store, collection):
                raise


def _names(store: Store, collection: str) -> set[str]:
    params = store.info(collection).config.params
    dense = {*params.vectors} if isinstance(params.vectors, dict) else set()
    return dense | {*(params.sparse_vectors or {})}


def _wanted(binding: Binding) -> list[str]:
    return [SPARSE, COLBERT] if binding.colbert else [SPARSE]


def _documents(
    store: Store,
    collection: str,
    binding: Binding,
    report: InPlaceReport,
    lacking: Sequence[str] = (),
) -> Iterator[Document]:
    """Points with text, those alone that lack one of these vectors."""
    lacks: list[models.Condition] = [
        models.Filter(must_not=[models.HasVectorCondition(has_vector=name)]) for name in lacking
    ]
    found = store.scroll(collection, scroll_filter=models.Filter(should=lacks) if lacks else None)
    for records in found:
        for record in records:
            text = text_at(record.payload or {}, binding.text_fields)
            if text is None or fault_of(text):
                report.without_text.append(record.id)
            else:
                yield Document(record.id, text, record.payload or {})
