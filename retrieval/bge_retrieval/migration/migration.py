"""Migrate a collection of any vectors to BGE vectors while it is in use, without losing points.

    passes over the source until one changes nothing → verify a sample → cutover (move the alias)

The source is only read. A pass reads it page by page, writes points that are missing or different
in the target, and deletes points that the source no longer has. A killed run can therefore be run
again, and the source may change during a run. Points without a usable text are copied without
vectors and reported.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from qdrant_client import models

from bge_client import Client, ConfigurationError

from ..documents import Document
from ..errors import MigrationError
from ..metadata import METADATA, CollectionMetadata
from ..schema import Schema
from ..similarity import MAX_IDS_IN_MESSAGE, MIN_COSINE, format_ids, no_text_message, similarities
from ..store import Store
from ..sync import (
    PAGE,
    IdSummary,
    Progress,
    is_current,
    no_progress,
    pages,
    strip_flag,
    sync_by_batches,
)
from .collection_pair import CollectionPair
from .cutover import cut_over, finish_cutover
from .reports import Estimate, MigrationReport

log = logging.getLogger("bge_retrieval")

MAX_PASSES = 20  # the source may change faster than it is copied
SAMPLE_SIZE = 64  # points whose vectors are recomputed before the cutover


class Migration:
    """Migrates `source`, a collection or an alias, to the collection `target`.

    The cutover moves `alias` to the target. If `source` is an alias, it is the default for
    `alias`. Without an alias, the target is written and verified only.

    Raises:
        ConfigurationError: a collection or an alias does not fit.
    """

    def __init__(
        self,
        store: Store,
        client: Client,
        source: str,
        target: str,
        *,
        alias: str | None = None,
        text_fields: Sequence[str] = ("text",),
        schema: Schema | None = None,
        max_length: int | None = None,
        progress: Progress = no_progress,
    ) -> None:
        self._store, self._client, self._progress = store, client, progress
        self._schema = schema or Schema()
        self._fields, self._max_length = tuple(text_fields), max_length
        self._target = target
        aliases = store.aliases()
        self._alias = alias or (source if source in aliases else None)
        self.source = self._resolve_source(source, aliases)
        self._config = store.info(self.source)
        self._pair = CollectionPair(store, self.source, target, self._fields)
        if target in aliases:
            raise ConfigurationError(f"the target `{target}` is an alias. Name a new collection")
        if self._alias is not None and store.exists(self._alias) and self._alias not in aliases:
            raise ConfigurationError(
                f"`{self._alias}` is a collection, so it cannot be an alias. Pass another --alias "
                "and use it in the application"
            )
        if aliases.get(self._alias or "", self.source) not in (self.source, target):
            raise ConfigurationError(
                f"alias `{self._alias}` points to `{aliases[self._alias or '']}`, which is neither "
                f"`{self.source}` nor `{target}`"
            )

    def _resolve_source(self, source: str, aliases: dict[str, str]) -> str:
        """Resolve an alias. After the cutover it points to the target, so use its stored source."""
        resolved = aliases.get(source, source)
        if resolved != self._target:
            return resolved
        origin = CollectionMetadata.load(self._store, self._target).migrated_from
        if origin is None or source == self._target:
            raise ConfigurationError(f"source and target are both `{self._target}`")
        if not self._store.exists(origin):
            raise ConfigurationError(
                f"alias `{source}` already points to `{self._target}`, and the source "
                f"`{origin}` does not exist"
            )
        return origin

    # ---------------------------------------------------------------------------- dry run

    def estimate(self, price: float, sample: int = 256) -> Estimate:
        """Embed a random sample of the source and extrapolate. Writes nothing.

        `price` is in dollars per second of a worker.

        Raises:
            ConfigurationError: no point of the sample has a text, or the price is invalid.
        """
        if not 0 <= price < math.inf:
            raise ConfigurationError(f"`price` must be 0 or more. Given: {price}")
        self._check_sample_has_text()
        points = self._store.sample(self.source, sample)
        usable = (self._pair.usable_text(point.payload or {})[0] for point in points)
        texts = [text for text in usable if text is not None]
        self._client.embed("fingerprint")  # excludes the cold start from the measurement
        start, tokens = time.monotonic(), 0
        if texts:
            result = self._client.embed(
                texts, sparse=True, colbert=self._schema.colbert, max_length=self._max_length
            )
            tokens = result.usage.total_tokens
        elapsed = time.monotonic() - start
        total = self._store.count(self.source)
        scale = total / max(1, len(points))
        return Estimate(
            points=total,
            sampled=len(points),
            without_text=round(scale * (len(points) - len(texts))),
            tokens=round(scale * tokens),
            seconds=scale * elapsed,
            dollars=scale * elapsed * price,
        )

    # -------------------------------------------------------------------------------- run

    def run(self) -> MigrationReport:
        """Copy, verify and cut over. After a kill or an error, run it again.

        After the cutover the target is no longer written to.

        Raises:
            MigrationError: the target differs from the source. The alias was not moved.
            FingerprintError: the target holds vectors of another model.
            BGEError: see `errors.py`.
        """
        start = time.monotonic()
        report = MigrationReport(source=self.source, target=self._target, alias=self._alias)
        metadata = self._prepare_target()
        aliases = self._store.aliases()
        target_aliases = {alias for alias, name in aliases.items() if name == self._target}
        is_cut_over = self._alias in target_aliases if self._alias else bool(target_aliases)
        if not is_cut_over:
            if metadata.in_use or target_aliases:
                self._check_target_unchanged()
            self._copy(metadata, report)
        elif not metadata.in_use:  # an earlier run was killed at the cutover
            finish_cutover(self._pair, metadata, report)
        report.points = self._store.count(self._target)
        report.seconds = time.monotonic() - start
        return report

    def _copy(self, metadata: CollectionMetadata, report: MigrationReport) -> None:
        self._sync_until_stable(metadata, report)
        self._verify_sample(metadata, report)
        # Copy what changed during the verification, so that little can change before the cutover.
        self._sync_until_stable(metadata, report)
        if self._alias:
            cut_over(self._pair, self._client, self._alias, metadata, report)

    def _check_target_unchanged(self) -> None:
        """Raises MigrationError if writing to a target that is or was in use would lose changes."""
        differing = list(self._pair.differing())
        missing = set(self._pair.missing_in_target(differing))
        lost = [*self._pair.only_in_target(), *(id for id in differing if id not in missing)]
        if lost:
            raise MigrationError(
                f"`{self._target}` is or was in use, and {len(lost)} of its points differ from "
                f"`{self.source}`{format_ids(lost)}. Overwriting them could lose changes: name "
                f"another target, or delete `{self._target}`"
            )

    def _prepare_target(self) -> CollectionMetadata:
        options: dict[str, Any] = {
            "colbert": self._schema.colbert,
            "max_length": self._max_length,
            "text_fields": self._fields,
        }
        probed = CollectionMetadata.probe(self._client, chunks=self._source_chunks(), **options)
        metadata = replace(probed, migrated_from=self.source)
        if not self._store.exists(self._target):
            self._check_sample_has_text()
        stored = self._schema.ensure(self._store, self._target, metadata, self._config.config)
        stored.check_options(self._target, **options)
        if stored.migrated_from != self.source:
            raise ConfigurationError(
                f"collection `{self._target}` was created from "
                f"{stored.migrated_from or 'documents'}, not from `{self.source}`. Name a new one"
            )
        target_indexes = self._store.info(self._target).payload_schema
        for name, index in self._config.payload_schema.items():  # keep filters fast
            if name not in target_indexes:
                field_schema = index.params or index.data_type
                self._store.create_payload_index(self._target, name, field_schema)
        return stored

    def _source_chunks(self) -> dict[str, Any] | None:
        """Return how the documents of a source of BGE vectors were cut, if they were."""
        if METADATA not in (self._config.config.metadata or {}):
            return None
        return CollectionMetadata.parse(self._config, self.source).chunks

    def _check_sample_has_text(self) -> None:
        """Raises ConfigurationError if no point of a random sample has a text."""
        sample = self._store.sample(self.source, SAMPLE_SIZE)
        if sample and not any(self._pair.usable_text(point.payload or {})[0] for point in sample):
            raise ConfigurationError(no_text_message(self._store, self.source, self._fields))

    def _sync_until_stable(self, metadata: CollectionMetadata, report: MigrationReport) -> None:
        for _ in range(MAX_PASSES):
            changes_before = report.written + report.deleted
            report.passes += 1
            report.unchanged, report.without_text = 0, IdSummary()
            self._write_changes(metadata, report)
            self._delete_removed(report)
            changes = report.written + report.deleted - changes_before
            if not changes and self._pair.counts_match():
                return
            log.info("pass %d: %d points written or deleted", report.passes, changes)
        changing = chain(self._pair.differing(), self._pair.only_in_target())
        differing = [*islice(changing, MAX_IDS_IN_MESSAGE + 1)]
        raise MigrationError(
            f"`{self.source}` still changes after {MAX_PASSES} passes{format_ids(differing)}. No "
            "alias was moved: pause the writes to it and run the same command again"
        )

    def _check_alias_not_moved(self) -> None:
        """Raises MigrationError if another run has cut over, so that the target is in use."""
        if self._alias and self._store.resolve(self._alias) == self._target:
            raise MigrationError(
                f"another run has pointed alias `{self._alias}` to `{self._target}`. This run "
                "stops, because it would overwrite newer changes"
            )

    def _write_changes(self, metadata: CollectionMetadata, report: MigrationReport) -> None:
        documents = self._source_documents(report)
        for _ in sync_by_batches(
            self._store, self._client, self._target, metadata, documents, report, self._progress
        ):
            self._check_alias_not_moved()

    def _source_documents(self, report: MigrationReport) -> Iterator[Document]:
        """Yield the source's points as documents. Copies points without text directly."""
        for records in self._store.scroll(self.source):
            textless = []
            for record in records:
                payload = record.payload or {}
                text, problem = self._pair.usable_text(payload)
                if text is not None:
                    yield Document(record.id, text, payload)
                else:
                    report.without_text.add(record.id, problem)
                    payload = strip_flag(payload)
                    textless.append(models.PointStruct(id=record.id, vector={}, payload=payload))
            self._copy_textless(textless, report)

    def _copy_textless(self, points: list[models.PointStruct], report: MigrationReport) -> None:
        if not points:
            return
        stored = self._store.payloads(self._target, [point.id for point in points])
        changed = [p for p in points if not is_current(stored.get(p.id), p.payload or {})]
        report.unchanged += len(points) - len(changed)
        if changed:
            self._check_alias_not_moved()
            self._store.upsert(self._target, changed)
            report.written += len(changed)
        self._progress(len(points))

    def _delete_removed(self, report: MigrationReport) -> None:
        for page in pages(self._pair.only_in_target(), PAGE):
            self._check_alias_not_moved()
            self._store.delete(self._target, page)
            report.deleted += len(page)

    # ---------------------------------------------------------------------------- compare

    def _verify_sample(self, metadata: CollectionMetadata, report: MigrationReport) -> None:
        """Recompute vectors of a sample. Counts, ids and payloads are compared by the passes."""
        sample = [
            Document(point.id, text, {})
            for point in self._store.sample(self._target, SAMPLE_SIZE)
            if (text := self._pair.usable_text(point.payload or {})[0]) is not None
        ]
        report.compared = len(sample)
        cosines = similarities(self._store, self._client, self._target, metadata, sample)
        differing = [document.id for document, cosine in cosines if not cosine >= MIN_COSINE]
        if differing:
            raise MigrationError(
                f"of {len(sample)} points of `{self._target}` whose vectors were recomputed, "
                f"{len(differing)} differ{format_ids(differing)}. No alias was moved: delete "
                f"these points from `{self._target}` and run the same command again"
            )
