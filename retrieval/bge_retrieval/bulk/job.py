"""Start a job, or resume the one in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from bge_client import ConfigurationError

from .folder import OutputFolder
from .manifest import Entry, Manifest, ModelIdentity, Options
from .sources import Part, Source


class Group(NamedTuple):
    """Partitions of one file that are read in one pass: their numbers and parts."""

    numbers: list[int]
    parts: list[Part]


@dataclass(frozen=True)
class Job:
    """A job, and the entries of the partitions that were finished before this run."""

    folder: OutputFolder
    source: Source
    manifest: Manifest
    finished: Mapping[int, Entry]

    def pending(self, size: int) -> list[Group]:
        """Return the other partitions, up to `size` of a file in a group."""
        parts = enumerate(self.manifest.partitions)
        pending = [(number, part) for number, part in parts if number not in self.finished]
        groups = []
        for _, members in groupby(pending, lambda item: item[1].get("file")):
            numbers, file_parts = map(list, zip(*members, strict=True))
            for start in range(0, len(numbers), size):
                span = slice(start, start + size)
                groups.append(Group(numbers[span], file_parts[span]))
        return groups


def check_started(folder: OutputFolder, source: Source, options: Options) -> Manifest | None:
    """Lock a folder, and return its manifest if a job was started. Needs no model.

    Raises:
        ConfigurationError: the job was started with other options or another source, another
            process has locked the folder, or it holds files of something else.
    """
    folder.lock()
    manifest = folder.manifest()
    if manifest is None:
        folder.check_new()
    else:
        manifest.check_options(options, source.identity(), folder.path)
    return manifest


def open_job(folder: OutputFolder, source: Source, options: Options, model: ModelIdentity) -> Job:
    """Write the manifest of a new job, or check the one that is there.

    Raises:
        ConfigurationError: as `check_started`, or the source holds no row.
        FingerprintError: the job was started with another model.
    """
    manifest = check_started(folder, source, options)
    if manifest is None:
        parts = source.parts(options.partition_rows)
        if not parts:
            raise ConfigurationError("SOURCE holds no row")
        manifest = Manifest(model, options, source.identity(), parts)
        folder.write_manifest(manifest)
    else:
        manifest.check_model(model, folder.path)
    folder.remove_temporary_files()
    return Job(folder, source, manifest, folder.finished(manifest))
