"""Write the vectors of a finished `bge bulk` job to a collection.

    partition → windows of rows → rows that are not current → points → upsert

Several threads write, each one partition at a time, and a window of rows after the other. So in a
collection that was empty, a partition whose last window is current is complete, and an interrupted
run goes on without comparing the rest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypedDict

import numpy as np
from qdrant_client import models

from bge_client import ConfigurationError

from ..errors import MigrationError
from ..index import IndexReport
from ..metadata import PROBE, CollectionMetadata, load_probe
from ..schema import Schema
from ..store import Store
from ..sync import Progress, SyncReport, batches, is_current, make_point, no_progress
from .finished_job import FinishedJob, Row

LOAD = "bge_load"  # in a collection's metadata, while a load of it is not finished
INDEXING_THRESHOLD = 10_000  # Qdrant's default, in kilobytes
Position = tuple[int, int]  # partition and row


class LoadRecord(TypedDict):
    """A load of an empty collection that is not finished: the digest of its job, None for two
    jobs, and the collection's own threshold in kilobytes."""

    job: str | None
    indexing_threshold: int


@dataclass
class LoadReport(IndexReport):
    """The counts and the duration of `load`. `repeated` rows have an id that a later row has too,
    `failed` rows have no vectors. `points` is the size of the collection."""

    repeated: int = 0
    failed: int = 0
    points: int = 0


def load(
    store: Store,
    job: FinishedJob,
    collection: str,
    *,
    schema: Schema | None = None,
    parallel: int = 4,
    alias: str | None = None,
    progress: Progress = no_progress,
) -> LoadReport:
    """Write the rows of a job that are missing or have changed as points.

    A missing collection is created with `schema`. While an empty one is filled, Qdrant does not
    index it. Of rows with the same id, the last one is kept. Finally, `alias` is pointed to the
    collection. Memory is bounded, but for 16 bytes a row. `progress` is called with the number of
    rows done since its last call, by one thread at a time.

    Raises:
        ProtocolError: a vector is not finite.
        FingerprintError: the collection holds vectors of another model.
        ConfigurationError: the collection was created with other options, or lacks vectors.
        MigrationError: the collection has other points too. The alias was not moved.
        BGEError: see `errors.py`. Written points stay; run it again to resume.
    """
    start = time.monotonic()
    schema = schema or Schema()
    collection = store.resolve(collection)
    if alias is not None and alias in [collection, *store.collections()]:
        raise ConfigurationError(f"`{alias}` is a collection, so it cannot be an alias")
    metadata = _matching_metadata(store, job, collection, schema)
    report = LoadReport(collection=collection, fingerprint=metadata.fingerprint)
    report.failed = sum(entry.failed for entry in job.entries)
    with ThreadPoolExecutor(parallel) as threads:
        last_positions = _last_positions(job, threads)
        schema.ensure(store, collection, metadata)
        _ensure_probe(store, job, collection)
        record = _start(store, job, collection)
        resumes = record is not None and record["job"] == job.digest
        loader = _Loader(store, job, collection, metadata, last_positions, resumes, progress)
        with _deferred_indexing(store, collection, record):
            loader.load_all(threads, report)
    report.repeated = job.rows - report.written - report.unchanged
    report.points = store.count(collection)
    if alias is not None:
        _point_alias(store, alias, job, report)
    report.seconds = time.monotonic() - start
    return report


def _matching_metadata(
    store: Store, job: FinishedJob, collection: str, schema: Schema
) -> CollectionMetadata:
    """Return the metadata of the collection, or that of a new one. Writes nothing."""
    if not store.exists(collection):
        return job.metadata(colbert=schema.colbert)
    stored = CollectionMetadata.load(store, collection)
    stored.check_fingerprint(job.manifest.model.fingerprint, collection)
    stored.check_options(collection, colbert=schema.colbert or None)
    requested = job.metadata(colbert=stored.colbert)
    for name in ("dimensions", "max_length", "text_fields", "chunks"):
        if getattr(requested, name) != getattr(stored, name):
            raise ConfigurationError(
                f"collection `{collection}` was created with `{name}` {getattr(stored, name)!r}. "
                f"Given: {getattr(requested, name)!r}"
            )
    return stored


def _last_positions(job: FinishedJob, threads: ThreadPoolExecutor) -> dict[str, Position]:
    """Return where each id that several rows have occurs last."""
    partitions = range(len(job.entries))
    # Hashes, since the ids of 100 million rows would need gigabytes.
    hashes = np.concatenate([*threads.map(partial(_id_hashes, job), partitions)])
    hashes.sort()
    repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not repeated:
        return {}
    return {
        id: (partition, row)
        for partition in partitions
        for row, id in enumerate(job.ids(partition))
        if hash(id) in repeated
    }


def _id_hashes(job: FinishedJob, partition: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([hash(id) for id in job.ids(partition)], np.int64)


def _ensure_probe(store: Store, job: FinishedJob, collection: str) -> None:
    if job.manifest.model.probe is not None and load_probe(store, collection) is None:
        store.update_metadata(collection, {PROBE: job.manifest.model.probe})


def _start(store: Store, job: FinishedJob, collection: str) -> LoadRecord | None:
    """Return the record of this load in the collection, if it was empty when the load began."""
    config = store.info(collection).config
    record: LoadRecord | None = (config.metadata or {}).get(LOAD)
    if record is None and store.count(collection) > 0:
        return None
    if record is None:
        threshold = config.optimizer_config.indexing_threshold
        record = {
            "job": job.digest,
            "indexing_threshold": INDEXING_THRESHOLD if threshold is None else threshold,
        }
    elif record["job"] != job.digest:  # points of two jobs: no window shows what is complete
        record = {**record, "job": None}
    store.update_metadata(collection, {LOAD: record})
    return record


@contextmanager
def _deferred_indexing(store: Store, collection: str, record: LoadRecord | None) -> Iterator[None]:
    """Turn indexing off, and on again at the end; the record goes with a success alone."""
    if record is None:
        yield
        return
    store.set_indexing_threshold(collection, 0)
    try:
        yield
    finally:
        store.set_indexing_threshold(collection, record["indexing_threshold"])
    store.update_metadata(collection, {LOAD: None})  # removes it


def _point_alias(store: Store, alias: str, job: FinishedJob, report: LoadReport) -> None:
    expected = job.rows - report.repeated
    if report.points != expected:
        raise MigrationError(
            f"`{report.collection}` has {report.points} points, and the job has {expected} ids. "
            f"Alias `{alias}` was not moved"
        )
    store.point_alias(alias, report.collection)


@dataclass
class _Loader:
    """Loads partitions in threads. If `resumes`, it skips those that are complete."""

    store: Store
    job: FinishedJob
    collection: str
    metadata: CollectionMetadata
    last_positions: Mapping[str, Position]
    resumes: bool
    progress: Progress
    stopped: threading.Event = field(default_factory=threading.Event)
    progress_lock: threading.Lock = field(default_factory=threading.Lock)

    def load_all(self, threads: ThreadPoolExecutor, report: SyncReport) -> None:
        """Load all partitions. After an error, each thread finishes the window it is at."""
        partitions = range(len(self.job.entries))
        futures = [threads.submit(self._load, partition) for partition in partitions]
        try:
            for future in as_completed(futures):
                report.merge(future.result())
        finally:
            self.stopped.set()
            for future in futures:
                future.cancel()

    def _load(self, partition: int) -> SyncReport:
        report = SyncReport()
        if self.resumes and (rows := self._complete_rows(partition)) is not None:
            report.unchanged = rows
            self._advance(self.job.entries[partition].written)
            return report
        columns = ["dense", "sparse", "truncated", *(["colbert"] if self.metadata.colbert else [])]
        for window in self.job.windows(partition, columns):
            if self.stopped.is_set():
                break
            self._write(self._latest(partition, window), report)
            self._advance(len(window))
        return report

    def _complete_rows(self, partition: int) -> int | None:
        """Return the number of points of a complete partition; None if it is not complete."""
        count = 0
        last: list[Row] = []
        for window in self.job.windows(partition, ()):
            rows = self._latest(partition, window)
            count, last = count + len(rows), rows or last
        return None if self._stale(last) else count

    def _latest(self, partition: int, window: list[Row]) -> list[Row]:
        """Return the rows whose id no later row has."""
        positions = self.last_positions
        return [
            row
            for row in window
            if positions.get(row.id, (partition, row.number)) == (partition, row.number)
        ]

    def _stale(self, rows: list[Row]) -> list[Row]:
        """Return the rows whose point is missing or differs."""
        if not rows:
            return []
        stored = self.store.payloads(self.collection, [row.point_id for row in rows])
        return [row for row in rows if not is_current(stored.get(row.point_id), row.payload)]

    def _write(self, rows: list[Row], report: SyncReport) -> None:
        stale = self._stale(rows)
        report.unchanged += len(rows) - len(stale)
        for batch in batches(self._point(row, report) for row in stale):
            self.store.upsert(self.collection, batch)
            report.written += len(batch)

    def _point(self, row: Row, report: SyncReport) -> models.PointStruct:
        embedding = self.job.embedding(row, colbert=self.metadata.colbert)
        return make_point(row.point_id, row.payload, embedding, self.metadata, report)

    def _advance(self, rows: int) -> None:
        with self.progress_lock:
            self.progress(rows)
