"""`bge bulk` whose steps take their time and note what they do, so that a test can kill it midway.

    BULK_NOTES=notes.txt python -c 'from fakes.slow_bulk import main; main()' SOURCE --to OUT …

A note is a line of the file: the step, the partition and the process. A text of more than
`MAX_TOKENS` tokens gets no vectors, as if they were not finite.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pyarrow as pa

from bge_client.cli import bge
from bge_retrieval.bulk import ray_pipeline
from bge_retrieval.bulk.engine import Engine
from bge_retrieval.bulk.manifest import Options
from bge_retrieval.bulk.ray_steps import Context, EmbedActor, Failure, from_row, write_result
from bge_worker.errors import InferenceError

NOTES = "BULK_NOTES"
EMBED_SECONDS = 0.25  # of a partition
SYNC_SECONDS = 0.08  # of a file, between its last byte and its name
MAX_TOKENS = 200


class Note(NamedTuple):
    """A step has begun (`embed`, `write`) or ended (`embedded`, `written`)."""

    step: str
    partition: int
    process: int


def read_notes(path: Path) -> list[Note]:
    lines = path.read_text().splitlines() if path.exists() else []
    words = [line.split() for line in lines]
    return [Note(step, int(partition), int(process)) for step, partition, process in words]


def add_note(step: str, partition: int) -> None:
    with open(os.environ[NOTES], "ab", buffering=0) as file:
        file.write(f"{step} {partition} {os.getpid()}\n".encode())


class FallibleEngine(Engine):
    def embed(self, encoded: Sequence[Any], options: Options) -> list[Any]:
        pairs = zip(encoded, super().embed(encoded, options), strict=True)
        error = InferenceError("the vectors are not finite")
        return [error if len(text.ids) > MAX_TOKENS else vectors for text, vectors in pairs]


class SlowEmbedActor(EmbedActor):
    def __init__(self, context: Context, engine_class: type[Engine]) -> None:
        super().__init__(context, FallibleEngine)

    def __call__(self, batch: pa.Table) -> pa.Table:
        partition = from_row(batch).documents.partition
        add_note("embed", partition)
        time.sleep(EMBED_SECONDS)
        result = super().__call__(batch)
        add_note("embedded", partition)
        return result


def slow_sync(descriptor: int) -> None:
    time.sleep(SYNC_SECONDS)


def slow_write(batch: pa.Table, context: Context) -> pa.Table:
    result = from_row(batch)
    if isinstance(result, Failure):
        return batch
    add_note("write", result.entry.partition)
    with mock.patch("os.fsync", slow_sync):
        row = write_result(batch, context)
    add_note("written", result.entry.partition)
    return row


def main() -> None:
    ray_pipeline.EmbedActor = SlowEmbedActor  # type: ignore[misc]
    ray_pipeline.write_result = slow_write
    bge()
