"""The output folder of a job, on a disk or in an object store.

    OUT/manifest.json  partitions/000012.json  vectors/000012.parquet  dead-letters/000012.jsonl

On a disk a file is written under a temporary name and renamed, so that a reader sees a whole file.
An object store shows an object when it is complete. Two machines may write the same partition at
once: each writes its own temporary file, and the last rename counts.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyarrow import fs

from bge_client import ConfigurationError, strict_json

from .manifest import Entry, Manifest
from .sources import file_system

CHUNK = 1 << 20  # bytes read at a time
READERS = 16  # threads: an object store answers each request after tens of milliseconds
FOLDERS = "partitions", "vectors", "dead-letters"
TEMPORARY = ".tmp"
NOT_FOUND = fs.FileType.NotFound


class OutputFolder:
    """The folder at `path`, a path or an object-store URI. Processes may share it."""

    def __init__(self, path: str) -> None:
        """Raises ConfigurationError: the URI is invalid."""
        self.path = path
        self.system, self._root = file_system(path)
        self._lock: int | None = None  # a file descriptor
        self._is_disk = isinstance(self.system, fs.LocalFileSystem)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None}  # this process has the lock

    def lock(self) -> None:
        """Lock the folder until this process ends. An object store cannot be locked.

        Raises:
            ConfigurationError: another process has locked it.
        """
        if self._lock is not None or not self._is_disk:
            return
        os.makedirs(self._root, exist_ok=True)
        self._lock = os.open(f"{self._root}/.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ConfigurationError(f"{self.path} is in use by another `bge bulk`") from None
        except OSError:
            return  # a network file system without locks

    def check_new(self) -> None:
        """Raises ConfigurationError: there are files where a new job writes its own."""
        for name in FOLDERS:
            if self.system.get_file_info(f"{self._root}/{name}").type is not NOT_FOUND:
                raise ConfigurationError(
                    f"{self.path} has `{name}` and no manifest.json: pass another --to"
                )

    def vectors_path(self, partition: int) -> str:
        """Return the path of a Parquet file in the folder's file system."""
        return f"{self._root}/{_vectors(partition)}"

    def manifest(self) -> Manifest | None:
        """Return the manifest, or None if no job was started.

        Raises:
            ConfigurationError: it is not a manifest of this version.
        """
        data = self._read("manifest.json")
        if data is None:
            return None
        try:
            stored = strict_json.loads(data)
        except ValueError:
            stored = None
        return Manifest.from_dict(stored, f"{self.path}/manifest.json")

    def write_manifest(self, manifest: Manifest) -> None:
        self._write("manifest.json", json.dumps(manifest.as_dict(), ensure_ascii=False).encode())

    def entry(self, partition: int) -> Entry | None:
        """Return the entry of a partition, or None if it is missing or torn."""
        try:
            data = self._read(f"partitions/{partition:06}.json")
            return Entry.from_dict(strict_json.loads(data)) if data else None
        except (ValueError, KeyError, TypeError):
            return None

    def finished(self, manifest: Manifest) -> dict[int, Entry]:
        """Return the entries of partitions whose Parquet files have the size of the entry.

        A file appears whole or not at all, so its size is enough to go on: the checksums of a
        billion rows would take an hour.

        Raises:
            ConfigurationError: an entry has another fingerprint than the manifest.
        """
        sizes = self._sizes("vectors")
        numbers = [number for number in self._sizes("partitions") if number in sizes]
        with ThreadPoolExecutor(READERS) as pool:
            entries = [entry for entry in pool.map(self.entry, numbers) if entry]
        kept = [
            entry
            for entry in entries
            if entry.partition < len(manifest.partitions)
            and sizes.get(entry.partition) == entry.bytes
        ]
        for entry in kept:
            if entry.fingerprint != manifest.model.fingerprint:
                raise ConfigurationError(
                    f"{self.path}: partition {entry.partition} has fingerprint "
                    f"{entry.fingerprint}, and the manifest {manifest.model.fingerprint}"
                )
        return {entry.partition: entry for entry in kept}

    def _sizes(self, name: str) -> dict[int, int]:
        """Return the bytes of the files of a folder, by partition."""
        selector = fs.FileSelector(f"{self._root}/{name}", allow_not_found=True)
        sizes = {}
        for info in self.system.get_file_info(selector):
            stem, _ = os.path.splitext(info.base_name)
            if stem.isdecimal():  # not a temporary file's
                sizes[int(stem)] = info.size
        return sizes

    def damaged(self, entries: Collection[Entry]) -> list[Entry]:
        """Return the entries whose Parquet file does not have their checksum. Reads all files."""
        with ThreadPoolExecutor(READERS) as pool:
            checksums = pool.map(self._checksum, entries)
            return [
                entry
                for entry, checksum in zip(entries, checksums, strict=True)
                if checksum != entry.sha256
            ]

    def _checksum(self, entry: Entry) -> str:
        digest = hashlib.sha256()
        path = self.vectors_path(entry.partition)
        with self.system.open_input_stream(path, compression=None) as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def write_vectors(self, partition: int, data: bytes) -> None:
        self._write(_vectors(partition), data)

    def write_dead_letters(self, partition: int, letters: Collection[dict[str, Any]]) -> None:
        lines = (json.dumps(letter, ensure_ascii=False) for letter in letters)
        name = f"dead-letters/{partition:06}.jsonl"
        if letters:
            self._write(name, "".join(f"{line}\n" for line in lines).encode())
        elif self.system.get_file_info(f"{self._root}/{name}").is_file:
            self.system.delete_file(f"{self._root}/{name}")  # of a process that was killed

    def write_entry(self, entry: Entry) -> None:
        """Finish a partition. Its files must have been written."""
        self._write(f"partitions/{entry.partition:06}.json", json.dumps(asdict(entry)).encode())

    def remove_temporary_files(self) -> None:
        """Remove what killed processes left. No other process may write."""
        if self._is_disk:
            for names in ("manifest.json.*", *(f"{folder}/*" for folder in FOLDERS)):
                for path in Path(self._root).glob(f"{names}{TEMPORARY}"):
                    path.unlink()

    def _read(self, name: str) -> bytes | None:
        try:
            with self.system.open_input_file(f"{self._root}/{name}") as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None

    def _write(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        if not self._is_disk:
            with self.system.open_output_stream(path, compression=None) as stream:
                stream.write(data)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex}{TEMPORARY}"
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            error.filename = path  # a full disk does not name it
            raise
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)


def _vectors(partition: int) -> str:
    return f"vectors/{partition:06}.parquet"
