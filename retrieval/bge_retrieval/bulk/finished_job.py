"""Read the output of a finished `bge bulk` job: its options, ids and rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bge_client import ConfigurationError, Embedding, SparseVector

from ..metadata import CollectionMetadata
from ..store import PointId
from ..sync import BATCH_BYTES, PAGE
from .folder import OutputFolder
from .manifest import Entry, Manifest

BUFFER_BYTES = 1 << 20  # of a column


@dataclass(eq=False)
class Row:
    """A row of a partition. `batch` holds its vectors at `index`."""

    number: int  # in the partition
    id: str
    payload_json: str
    batch: pa.RecordBatch
    index: int

    @property
    def point_id(self) -> PointId:
        return int(self.id) if self.id.isdecimal() else self.id

    @cached_property
    def payload(self) -> dict[str, Any]:
        return dict(json.loads(self.payload_json))


class FinishedJob:
    """The output of a job of which every partition is done. `entries` are in their order."""

    def __init__(self, path: str) -> None:
        """Open a folder or an object-store URI. Reads every file once.

        Raises:
            ConfigurationError: there is no job, partitions are missing, or a file does not have
                the checksum of its partition.
        """
        self._folder = OutputFolder(path)
        manifest = self._folder.manifest()
        if manifest is None:
            raise ConfigurationError(f"there is no output of `bge bulk` in {path}")
        entries = self._folder.finished(manifest)
        count = len(manifest.partitions)
        if len(entries) < count:
            first = next(number for number in range(count) if number not in entries)
            raise ConfigurationError(
                f"{path}: {count - len(entries)} of {count} partitions are missing, first {first}. "
                "Run `bge bulk` again: it computes them"
            )
        if damaged := self._folder.damaged(entries.values()):
            file = self._folder.vectors_path(damaged[0].partition)
            raise ConfigurationError(
                f"{file} does not have its checksum. Delete it and run `bge bulk` again"
            )
        self.manifest: Manifest = manifest
        self.entries: Sequence[Entry] = [entries[number] for number in range(count)]

    @property
    def rows(self) -> int:
        """Rows that have vectors."""
        return sum(entry.written for entry in self.entries)

    def metadata(self, *, colbert: bool) -> CollectionMetadata:
        """Return the metadata of a collection of these vectors.

        Raises:
            ConfigurationError: the job has no sparse vectors, or no ColBERT vectors if `colbert`.
        """
        model, options = self.manifest.model, self.manifest.options
        for name, is_there in (
            ("sparse", options.sparse),
            ("ColBERT", options.colbert or not colbert),
        ):
            if not is_there:
                raise ConfigurationError(
                    f"{self._folder.path} has no {name} vectors, which the collection needs. Run "
                    "`bge bulk` with them into another folder"
                )
        return CollectionMetadata(
            model.fingerprint,
            model.model,
            model.dimensions,
            colbert=colbert,
            max_length=options.max_length,
            text_fields=options.text_fields,
        )

    def ids(self, partition: int) -> list[str]:
        """Return the ids of a partition, in order."""
        with self._open(partition) as file:
            return list(file.read(columns=["id"])["id"].to_pylist())

    def windows(self, partition: int, columns: Sequence[str]) -> Iterator[list[Row]]:
        """Yield the rows of a partition in order, in lists that fit a request."""
        entry = self.entries[partition]
        row_bytes = max(1, entry.bytes // max(1, entry.written))
        size = min(PAGE, max(1, BATCH_BYTES // row_bytes))
        start = 0
        with self._open(partition) as file:
            for batch in file.iter_batches(size, columns=["id", "payload", *columns]):
                yield _rows(batch, start)
                start += len(batch)

    def embedding(self, row: Row, *, colbert: bool) -> Embedding:
        """Return the vectors of a row."""
        batch, index = row.batch, row.index
        indices = batch["sparse"].field("indices")[index].values.to_numpy()
        values = batch["sparse"].field("values")[index].values.to_numpy()
        return Embedding(
            dense=batch["dense"][index].values.to_numpy(),
            sparse=SparseVector(indices, values),
            colbert=_matrix(batch["colbert"][index].values) if colbert else None,
            truncated=batch["truncated"][index].as_py(),
            fingerprint=self.manifest.model.fingerprint,
        )

    def _open(self, partition: int) -> pq.ParquetFile:
        path, system = self._folder.vectors_path(partition), self._folder.system
        return pq.ParquetFile(path, filesystem=system, buffer_size=BUFFER_BYTES)


def _rows(batch: pa.RecordBatch, start: int) -> list[Row]:
    pairs = zip(batch["id"].to_pylist(), batch["payload"].to_pylist(), strict=True)
    return [
        Row(start + index, id, payload, batch, index) for index, (id, payload) in enumerate(pairs)
    ]


def _matrix(vectors: pa.FixedSizeListArray) -> np.ndarray[Any, Any]:
    """Return a list of vectors as an array [tokens - 1, D]."""
    floats: np.ndarray[Any, Any] = vectors.flatten().to_numpy()
    return floats.reshape(len(vectors), vectors.type.list_size)
