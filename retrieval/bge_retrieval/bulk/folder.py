"""The output folder of a job, on a disk or in an object store.

    OUT/manifest.json  partitions/000012.json  vectors/000012.parquet  dead-letters/000012.jsonl

On a disk a file is written under a temporary name and renamed, so that a reader sees a whole file.
An object store shows an object when it is complete. Two machines may write the same partition at
once: each writes its own temporary file, and the last rename counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from pyarrow import fs

from bge_client import ConfigurationError, strict_json

from .manifest import Entry, Manifest
from .sources import file_system

CHUNK = 1 << 20  # bytes read at a time
READERS = 16  # threads: an object store answers each request after tens of milliseconds
TEMPORARY = ".tmp"


class OutputFolder:
    """The folder at `path`, a path or an object-store URI. Processes may share it."""

    def __init__(self, path: str) -> None:
        """Raises ConfigurationError: the URI is invalid."""
        self.path = path
        self._system, self._root = file_system(path)
        self._is_disk = isinstance(self._system, fs.LocalFileSystem)

    def __reduce__(self) -> tuple[Any, ...]:
        path = self._root if isinstance(self._system, fs.LocalFileSystem) else self.path
        return OutputFolder, (path,)  # another process may have another working directory

    def vectors_path(self, partition: int) -> str:
        """Return the path of a Parquet file in the folder's file system."""
        return f"{self._root}/{_vectors(partition)}"

    @property
    def system(self) -> fs.FileSystem:
        return self._system

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

    def is_whole(self, entry: Entry) -> bool:
        """Return whether the Parquet file is the one that the entry names."""
        path = self.vectors_path(entry.partition)
        info = self._system.get_file_info(path)
        if not info.is_file or info.size != entry.bytes:
            return False
        digest = hashlib.sha256()
        with self._system.open_input_stream(path, compression=None) as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest() == entry.sha256

    def finished(self, manifest: Manifest) -> dict[int, Entry]:
        """Return the entries of partitions whose files are whole. Reads every file once.

        Raises:
            ConfigurationError: an entry has another fingerprint than the manifest.
        """
        selector = fs.FileSelector(f"{self._root}/partitions", allow_not_found=True)
        infos = self._system.get_file_info(selector)
        stems = [os.path.splitext(info.base_name)[0] for info in infos]
        numbers = [int(stem) for stem in stems if stem.isdecimal()]
        with ThreadPoolExecutor(READERS) as pool:
            entries = [entry for entry in pool.map(self.entry, numbers) if entry]
            known = [entry for entry in entries if entry.partition < len(manifest.partitions)]
            whole = pool.map(self.is_whole, known)
            kept = [entry for entry, is_whole in zip(known, whole, strict=True) if is_whole]
        for entry in kept:
            if entry.fingerprint != manifest.model.fingerprint:
                raise ConfigurationError(
                    f"{self.path}: partition {entry.partition} has fingerprint "
                    f"{entry.fingerprint}, and the manifest {manifest.model.fingerprint}"
                )
        return {entry.partition: entry for entry in kept}

    def write_vectors(self, partition: int, data: bytes) -> None:
        self._write(_vectors(partition), data)

    def write_dead_letters(self, partition: int, letters: Collection[dict[str, Any]]) -> None:
        lines = (json.dumps(letter, ensure_ascii=False) for letter in letters)
        name = f"dead-letters/{partition:06}.jsonl"
        if letters:
            self._write(name, "".join(f"{line}\n" for line in lines).encode())

    def write_entry(self, entry: Entry) -> None:
        """Finish a partition. Its files must have been written."""
        self._write(f"partitions/{entry.partition:06}.json", json.dumps(asdict(entry)).encode())

    def remove_temporary_files(self) -> None:
        """Remove what killed processes left. No other process may write."""
        if self._is_disk:
            for path in self._temporary_files():
                os.unlink(path)

    def _temporary_files(self) -> Iterator[str]:
        selector = fs.FileSelector(self._root, allow_not_found=True, recursive=True)
        infos = self._system.get_file_info(selector)
        return (info.path for info in infos if info.path.endswith(TEMPORARY))

    def _read(self, name: str) -> bytes | None:
        try:
            with self._system.open_input_file(f"{self._root}/{name}") as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None

    def _write(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        if not self._is_disk:
            with self._system.open_output_stream(path, compression=None) as stream:
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
