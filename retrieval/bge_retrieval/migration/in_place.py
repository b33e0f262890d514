"""Add bge-m3's vectors to a collection: beside another model's, or to bge-m3's own dense ones.

    check a sample → record → create the names → passes until little is left → verify a sample
    → passes → metadata, which switches the queries → a last pass

Only this module writes to a collection that another program created. It adds vectors and replaces
nothing. Adding a named vector needs Qdrant 1.18.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qdrant_client import models

from bge_client import Client, ConfigurationError, Embedding, FingerprintError, HTTPStatusError

from ..documents import Document, usable_text
from ..errors import MigrationError
from ..metadata import CollectionMetadata, ensure_probe
from ..schema import COLBERT, COLBERT_CUT, MAX_SIM, SPARSE, is_colbert_cut, point_vectors
from ..similarity import MIN_COSINE, format_ids, no_text_message, similarities
from ..store import Payload, PointId, Store
from ..sync import IdSummary, Progress, SyncReport, batches, embed_documents, no_progress
from .added_vectors import AddedVectors, stored_metadata, used_names, vector_names

SAMPLE_SIZE = 256  # points whose existing dense vectors are recomputed first
MIN_MATCHING = 0.95  # of the sample; some texts may have changed since they were embedded
ADDED_SAMPLE_SIZE = 64  # points whose added dense vectors are recomputed before the switch


@dataclass
class InPlaceReport(SyncReport):
    """`dense` names the dense vector that queries use, `added` the vectors that were added.

    `without_text` are points that were skipped, `differing` points of the sample whose existing
    dense vector differs from a new one of their text. `late` counts the points that were written
    after the switch.
    """

    collection: str = ""
    dense: str = ""
    added: tuple[str, ...] = ()
    compared: int = 0
    differing: list[PointId] = field(default_factory=list)
    without_text: IdSummary = field(default_factory=IdSummary)
    late: int = 0


def add_in_place(
    store: Store,
    client: Client,
    collection: str,
    *,
    dense: str | None = None,
    add_dense: str | None = None,
    text_fields: Sequence[str] | None = None,
    colbert: bool = False,
    max_length: int | None = None,
    progress: Progress = no_progress,
) -> InPlaceReport:
    """Add the missing vectors to the points with a text, then let queries use them.

    `add_dense` names a new dense vector, beside another model's. Without it, the collection must
    hold bge-m3's dense vectors: a sample of them is checked first, and `dense` names them if
    several have the right size. A BGE collection can get ColBERT vectors this way.

    After a kill, and for points that were written later, run it again. A point that is replaced
    meanwhile loses the added vectors, and gets new ones. A text that changes without the point's
    vectors, as by `set_payload`, keeps outdated ones.

    Raises:
        FingerprintError: the existing vectors are those of another model.
        MigrationError: added vectors of a sample differ from new ones. Queries have not changed.
        ConfigurationError: no vector, or more than one, has the right size; or a vector of another
            model has the name of an added one.
    """
    if add_dense is not None and (dense is not None or add_dense in ("", SPARSE, COLBERT)):
        raise ConfigurationError(
            f"`add_dense` (--add-dense) must be a name other than `{SPARSE}` and `{COLBERT}`, and "
            f"given without `dense` (--dense-name). Given: `{add_dense}`"
        )
    collection = store.resolve(collection)
    stored = stored_metadata(store, collection)
    probed = CollectionMetadata.probe(client, colbert=colbert, max_length=max_length)
    if stored is None:
        if dense is None and add_dense is None:
            dense = _find_dense_name(store, collection, probed.dimensions)
        fields = tuple(text_fields or ("text",))
        metadata = replace(probed, dense=dense or "", text_fields=fields)
    else:
        fields = tuple(text_fields or stored.text_fields)
        stored.check_fingerprint(probed.fingerprint, collection)
        stored.check_options(collection, dense=dense, text_fields=fields, max_length=max_length)
        metadata = replace(stored, colbert=stored.colbert or colbert)
    if add_dense is not None:
        metadata = replace(metadata, dense=add_dense)
    migration = _InPlaceMigration(store, client, collection, stored, metadata, add_dense, progress)
    report = migration.run()
    ensure_probe(store, client, collection, metadata.fingerprint)
    return report


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


class _InPlaceMigration:
    """Takes a collection from the `stored` metadata, or none, to the target `metadata`."""

    def __init__(
        self,
        store: Store,
        client: Client,
        collection: str,
        stored: CollectionMetadata | None,
        metadata: CollectionMetadata,
        add_dense: str | None,
        progress: Progress,
    ) -> None:
        self._store, self._client, self._collection = store, client, collection
        self._metadata, self._progress = metadata, progress
        before = (None, False) if stored is None else (stored.dense, stored.colbert)
        self._record = AddedVectors.load(store, collection) or AddedVectors((), *before)
        self._adds_dense = metadata.dense in (add_dense, *self._record.names)
        self._names = [metadata.dense] if self._adds_dense else []
        self._names += [SPARSE, COLBERT] if metadata.colbert else [SPARSE]
        self._known = {*self._record.names} | used_names(stored)
        # Written last. A point that another program writes meanwhile lacks it.
        new_names = [name for name in self._names if name not in used_names(stored)]
        self._last = (new_names or self._names)[-1]
        self._report = InPlaceReport(collection=collection, dense=metadata.dense)
        self._texts: dict[PointId, str] = {}  # of the points that are being written
        self._cut: set[PointId] = set()  # those of them whose ColBERT vectors are cut

    def run(self) -> InPlaceReport:
        missing = self._missing_names()
        if self._adds_dense:
            self._sample(SAMPLE_SIZE)
        else:
            self._check_existing()
        self._create_names(missing)
        self._add_until_stable()
        if self._adds_dense:
            self._verify_added()
            # Add what was written during the verification.
            self._add_until_stable()
        self._metadata.save(self._store, self._collection)
        self._report.late = self._add_missing()
        return self._report

    def _text(self, payload: Payload) -> tuple[str | None, str]:
        return usable_text(payload, self._metadata.text_fields)

    # ------------------------------------------------------------------------------ check

    def _sample(self, count: int, filter: models.Filter | None = None) -> list[Document]:
        """Return the points with text of a random sample.

        Raises:
            ConfigurationError: there are none.
        """
        documents = [
            Document(point.id, text, point.payload or {})
            for point in self._store.sample(self._collection, count, filter)
            if (text := self._text(point.payload or {})[0]) is not None
        ]
        if not documents:
            fields = self._metadata.text_fields
            raise ConfigurationError(no_text_message(self._store, self._collection, fields))
        return documents

    def _differing(self, documents: Sequence[Document]) -> list[PointId]:
        self._report.compared = len(documents)
        cosines = similarities(
            self._store, self._client, self._collection, self._metadata, documents
        )
        return [document.id for document, cosine in cosines if not cosine >= MIN_COSINE]

    def _check_existing(self) -> None:
        """Raises FingerprintError if existing dense vectors differ from new ones."""
        documents = self._sample(SAMPLE_SIZE)
        differing = self._report.differing = self._differing(documents)
        if len(differing) > (1 - MIN_MATCHING) * len(documents):
            raise FingerprintError(
                f"of {len(documents)} dense vectors of `{self._collection}`, {len(differing)} "
                f"differ from those of {self._metadata.model}{format_ids(differing)}. Nothing was "
                f"changed. Run `bge migrate {self._collection} NEW` to build a new collection from "
                "the texts, or pass --add-dense to add vectors beside them"
            )

    def _verify_added(self) -> None:
        """Raises MigrationError if an added dense vector differs from a new one."""
        name = self._metadata.dense
        condition = models.HasVectorCondition(has_vector=name)
        documents = self._sample(ADDED_SAMPLE_SIZE, models.Filter(must=[condition]))
        differing = self._differing(documents)
        if differing:
            raise MigrationError(
                f"of {len(documents)} vectors `{name}` of `{self._collection}` that were "
                f"recomputed, {len(differing)} differ{format_ids(differing)}: their texts have "
                "changed without their vectors. Queries have not changed. Upsert these points and "
                "run the same command again"
            )

    # ------------------------------------------------------------------------------ names

    def _missing_names(self) -> list[str]:
        """Return the vectors that the collection lacks.

        Raises:
            ConfigurationError: a vector of another model has one of the names.
        """
        existing = vector_names(self._store, self._collection)
        for name in self._names:
            if self._adds_dense and name in existing - self._known:
                raise ConfigurationError(
                    f"collection `{self._collection}` has a vector `{name}` already, which was not "
                    f"added in place. "
                    f"{'Pass another name' if name == self._metadata.dense else 'Remove it first'}"
                )
        return [name for name in self._names if name not in existing]

    def _create_names(self, missing: list[str]) -> None:
        names = tuple(dict.fromkeys([*self._record.names, *missing]))
        self._report.added = names
        if missing:
            replace(self._record, names=names).save(self._store, self._collection)
        for name in missing:
            try:
                self._store.create_vector_name(self._collection, name, self._config(name))
            except HTTPStatusError:  # created, but the response was lost
                if name not in vector_names(self._store, self._collection):
                    raise

    def _config(self, name: str) -> Any:
        if name == SPARSE:
            return models.SparseVectorNameConfig(sparse=models.SparseVectorConfig())
        config = models.DenseVectorConfig(
            size=self._metadata.dimensions, distance=models.Distance.COSINE
        )
        if name == COLBERT:
            config.multivector_config = MAX_SIM
            config.datatype = models.VectorStorageDatatype.FLOAT16
        return models.DenseVectorNameConfig(dense=config)

    # ------------------------------------------------------------------------------ write

    def _add_until_stable(self) -> None:
        """Repeat the pass while each leaves less to do than the one before it."""
        previous: float = math.inf
        while 0 < (written := self._add_missing()) < previous:
            previous = written

    def _add_missing(self) -> int:
        """Add vectors to the points that lack one. Return the number of points written."""
        self._report.without_text = IdSummary()
        embeddings = embed_documents(
            self._client, self._incomplete_documents(), self._collection, self._metadata
        )
        written = 0
        for batch in batches(self._point_vectors(embeddings)):
            written += self._write(batch)
            self._progress(len(batch))
        self._report.written += written
        return written

    def _incomplete_documents(self) -> Iterator[Document]:
        """Yield the points with text that lack a vector."""
        conditions: list[models.Condition] = [
            models.Filter(must_not=[models.HasVectorCondition(has_vector=name)])
            for name in self._names
        ]
        incomplete = models.Filter(should=conditions)
        for records in self._store.scroll(self._collection, scroll_filter=incomplete):
            for record in records:
                payload = record.payload or {}
                text, problem = self._text(payload)
                if text is None:
                    self._report.without_text.add(record.id, problem)
                else:
                    yield Document(record.id, text, payload)

    def _point_vectors(
        self, embeddings: Iterable[tuple[Document, Embedding]]
    ) -> Iterator[models.PointVectors]:
        for document, embedding in embeddings:
            if embedding.truncated:
                self._report.truncated.add(document.id)
            if is_colbert_cut(embedding, self._metadata):
                self._report.colbert_cut.add(document.id)
                self._cut.add(document.id)
            self._texts[document.id] = document.text
            vectors = point_vectors(embedding, self._metadata)
            yield models.PointVectors(
                id=document.id, vector={name: vectors[name] for name in self._names}
            )

    def _write(self, batch: list[models.PointVectors]) -> int:
        """Write the vectors, the flag and the last vector only to points with the same text still.

        A point that is replaced before the check has another text, and after it lacks the other
        vectors. Either way, a later pass finds it incomplete, also after a kill.
        """
        last, others = self._split(batch)
        if others:
            self._store.add_vectors(self._collection, others)
        payloads = self._store.payloads(self._collection, [point.id for point in batch])
        current = [
            point
            for point in last
            if self._text(payloads.get(point.id, {}))[0] == self._texts.pop(point.id)
        ]
        ids = {point.id for point in current}
        if cut := ids & self._cut:
            self._store.set_payload(self._collection, [*cut], {COLBERT_CUT: True})
        self._cut.difference_update(point.id for point in batch)
        if current:
            self._store.add_vectors(self._collection, current)
        return len(current)

    def _split(
        self, batch: list[models.PointVectors]
    ) -> tuple[list[models.PointVectors], list[models.PointVectors]]:
        """Return the last vector of each point, and its other vectors."""
        last, others = [], []
        for point in batch:
            vectors: dict[str, Any] = dict(point.vector)  # type: ignore[arg-type]
            last.append(
                models.PointVectors(id=point.id, vector={self._last: vectors.pop(self._last)})
            )
            if vectors:
                others.append(models.PointVectors(id=point.id, vector=vectors))
        return last, others
