"""Sources of documents, cut into partitions that are read apart from each other.

A partition is named by a `Part`, a JSON object. It says where its rows lie, so that the manifest
fixes the partitions of a job, and any machine can read one without the others.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from bge_client import ConfigurationError

from ..store import PointId, Store
from ..sync import strip_flag

Part = dict[str, Any]
SUFFIXES = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
CHUNK = 1 << 20  # bytes read at a time
BATCH_ROWS = 1024  # of a Parquet file, decoded at a time
PAGE = 1024  # points of a request to Qdrant


class Row(NamedTuple):
    """A row: a line of JSON, a document, or why there is none.

    `number` counts from 0 in the file. `id` is its point id, if it is not in the document.
    """

    number: int
    value: bytes | dict[str, Any] | UnicodeDecodeError
    id: PointId | None = None


class Source(Protocol):
    def identity(self) -> dict[str, Any]:
        """Return what makes this the same source on resume, as JSON."""

    def parts(self, rows: int) -> list[Part]:
        """Cut the source into partitions of up to `rows` rows. Each has its `rows`."""

    def read(self, parts: Sequence[Part]) -> Iterator[list[Row]]:
        """Yield the rows of each partition. All are of one file, in order."""


# ----------------------------------------------------------------------------------- files


class File(NamedTuple):
    """A file of a source: its path below the source's root, and its size in bytes."""

    name: str
    bytes: int


def open_files(path: str) -> FileSource:
    """Return the source of a file, folder, glob or object-store URI. A `*` matches no `/`.

    Raises:
        ConfigurationError: there is no Parquet or JSONL file, or there are both.
    """
    system, root = file_system(path)
    is_glob = "*" in root
    base = root[: root.index("*")].rpartition("/")[0] if is_glob else root
    info = system.get_file_info(base)
    if info.type is fs.FileType.NotFound:
        raise ConfigurationError(f"{path} does not exist")
    if info.is_file:
        base, infos = root.rpartition("/")[0], [info]
    else:
        is_deep = not is_glob or "/" in root[len(base) + 1 :]
        infos = system.get_file_info(fs.FileSelector(base, recursive=is_deep))
    files = [
        File(info.path.removeprefix(base).lstrip("/"), info.size)
        for info in sorted(infos, key=lambda info: info.path)
        if info.is_file and (not is_glob or _matches(info.path, root))
    ]
    kinds = {_suffix(file.name) for file in files} - {None}
    if len(kinds) != 1:
        problem = "holds both Parquet and JSONL files" if kinds else "holds no file"
        raise ConfigurationError(f"{path} {problem}: pass .parquet, or .jsonl and .ndjson files")
    kept = tuple(file for file in files if _suffix(file.name))
    return (ParquetSource if kinds == {"parquet"} else JSONLSource)(system, base, kept)


def _matches(path: str, pattern: str) -> bool:
    names, patterns = path.split("/"), pattern.split("/")
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))


def file_system(path: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a path or URI, and the path in it.

    Raises:
        ConfigurationError: the URI is invalid.
    """
    if "://" not in path:
        return fs.LocalFileSystem(), os.path.abspath(path)
    try:
        system, inner = fs.FileSystem.from_uri(path)
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"the URI cannot be opened: {error}") from None
    return system, inner.rstrip("/")


def _suffix(name: str) -> str | None:
    return SUFFIXES.get(os.path.splitext(name)[1])


@dataclass(frozen=True)
class FileSource:
    """Files below `root`, a path in `system`: the options of its URI and its keys are there."""

    system: fs.FileSystem
    root: str
    files: tuple[File, ...]
    kind = ""

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, "files": [file._asdict() for file in self.files]}

    def _open(self, name: str) -> pa.NativeFile:
        return self.system.open_input_file(f"{self.root}/{name}")


class JSONLSource(FileSource):
    """JSON objects, one on a line. A part is a range of bytes that ends behind a line."""

    kind = "jsonl"

    def parts(self, rows: int) -> list[Part]:
        return [part for file in self.files for part in self._parts(file, rows)]

    def _parts(self, file: File, rows: int) -> Iterator[Part]:
        first = start = lines = position = 0
        with self._open(file.name) as stream:
            while chunk := stream.read(CHUNK):
                ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
                # The ends of each `rows`-th line of the file.
                for end in ends[-(lines + 1) % rows :: rows].tolist():
                    stop = position + end + 1
                    yield _byte_range(file.name, first, rows, start, stop)
                    first, start = first + rows, stop
                lines += len(ends)
                position += len(chunk)
                is_open = chunk[-1] != ord("\n")
        if start < position:
            yield _byte_range(file.name, first, lines + is_open - first, start, position)

    def read(self, parts: Sequence[Part]) -> Iterator[list[Row]]:
        with self._open(parts[0]["file"]) as stream:
            for part in parts:
                stream.seek(part["start"])
                lines = stream.read(part["stop"] - part["start"]).removesuffix(b"\n").split(b"\n")
                yield [Row(number, line) for number, line in enumerate(lines, part["first"])]


def _byte_range(file: str, first: int, rows: int, start: int, stop: int) -> Part:
    return {"file": file, "first": first, "rows": rows, "start": start, "stop": stop}


class ParquetSource(FileSource):
    """Parquet files. A part is a range of rows, which may begin within a row group."""

    kind = "parquet"

    def parts(self, rows: int) -> list[Part]:
        return [part for file in self.files for part in self._parts(file, rows)]

    def _parts(self, file: File, rows: int) -> Iterator[Part]:
        with self._open_parquet(file.name) as opened:
            total = opened.metadata.num_rows
        for first in range(0, total, rows):
            yield {"file": file.name, "first": first, "rows": min(rows, total - first)}

    def read(self, parts: Sequence[Part]) -> Iterator[list[Row]]:
        """A row group is decoded from its start, so it is decoded once for all its parts."""
        rows: list[Row] = []
        waiting = deque(parts)
        for first, batch in self._batches(parts):
            while waiting:
                part = waiting[0]
                stop = part["first"] + part["rows"]
                start = max(part["first"], first)
                offset = min(start - first, batch.num_rows)
                piece = batch.slice(offset, max(0, stop - start))
                rows += [Row(n, row) for n, row in enumerate(_documents(piece), start)]
                if stop > first + batch.num_rows:
                    break
                yield rows
                rows = []
                waiting.popleft()

    def _batches(self, parts: Sequence[Part]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield batches of the row groups that hold the parts, each with its first row."""
        last = parts[-1]["first"] + parts[-1]["rows"]
        with self._open_parquet(parts[0]["file"]) as file:
            metadata = file.metadata
            counts = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
            starts = list(accumulate(counts, initial=0))
            groups = [
                n
                for n, count in enumerate(counts)
                if starts[n] < last and starts[n] + count > parts[0]["first"]
            ]
            first = starts[groups[0]]
            for batch in file.iter_batches(BATCH_ROWS, groups):
                yield first, batch
                first += batch.num_rows

    @contextmanager
    def _open_parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        """Raises ConfigurationError: the file is not Parquet, or is damaged."""
        try:
            with self._open(name) as stream, pq.ParquetFile(stream) as file:
                yield file
        except pa.ArrowInvalid as error:
            raise ConfigurationError(f"{name} cannot be read as Parquet: {error}") from None


def _documents(batch: pa.RecordBatch) -> list[dict[str, Any] | UnicodeDecodeError]:
    """Return rows as JSON has them: times, decimals and UUIDs are strings, maps are objects.

    A row that is not UTF-8 is the error.
    """
    for index, field in enumerate(batch.schema):
        column = batch.column(index)
        if isinstance(field.type, pa.UuidType):
            uuids = [None if value is None else str(value) for value in column.to_pylist()]
            batch = batch.set_column(index, field.name, pa.array(uuids, pa.string()))
        elif (kind := _json_type(field.type)) != field.type:
            batch = batch.set_column(index, field.name, column.cast(kind))
    return _values(batch)


def _values(batch: pa.RecordBatch) -> list[dict[str, Any] | UnicodeDecodeError]:
    try:
        return list(batch.to_pylist(maps_as_pydicts="lossy"))
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            return [error]
    return [row for index in range(len(batch)) for row in _values(batch.slice(index, 1))]


def _json_type(kind: pa.DataType) -> pa.DataType:
    """Return a type with strings in the place of times and decimals."""
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        return pa.string()
    if pa.types.is_dictionary(kind):
        return _json_type(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_json_type(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, _json_type(kind.item_type))
    if pa.types.is_list(kind):
        return pa.list_(_json_type(kind.value_type))
    return kind


# ---------------------------------------------------------------------------------- Qdrant


class QdrantSource:
    """The points of a collection. A part is a range of ids: their order is Qdrant's.

    Raises:
        BGEError: see `Store`.
    """

    kind = "qdrant"

    def __init__(
        self, collection: str, *, url: str | None, path: str | None, api_key: str | None
    ) -> None:
        self.collection = collection
        self._address = {"url": url, "path": path, "api_key": api_key}
        self._store: Store | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_store": None}  # connections stay here

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = Store.open(**self._address)  # type: ignore[arg-type]
        return self._store

    def identity(self) -> dict[str, Any]:
        url, path = self._address["url"], self._address["path"]
        return {"kind": self.kind, "url": url or path, "collection": self.collection}

    def parts(self, rows: int) -> list[Part]:
        parts: list[Part] = []
        for page in self.store.scroll(self.collection, page=PAGE, with_payload=False):
            for record in page:
                if not parts or parts[-1]["rows"] == rows:
                    parts.append({"first_id": record.id, "first": len(parts) * rows, "rows": 0})
                parts[-1] |= {"last_id": record.id, "rows": parts[-1]["rows"] + 1}
        return parts

    def read(self, parts: Sequence[Part]) -> Iterator[list[Row]]:
        """Points that were added or deleted since are read or missing."""
        for part in parts:
            yield [
                Row(number, strip_flag(record.payload or {}), record.id)
                for number, record in enumerate(self._records(part), part["first"])
            ]

    def _records(self, part: Part) -> Iterator[Any]:
        last = _id_order(part["last_id"])
        for page in self.store.scroll(self.collection, page=PAGE, start=part["first_id"]):
            for record in page:
                if _id_order(record.id) > last:
                    return
                yield record


def _id_order(id: PointId) -> tuple[bool, PointId]:
    """Numbers come before UUIDs."""
    return isinstance(id, str), id
