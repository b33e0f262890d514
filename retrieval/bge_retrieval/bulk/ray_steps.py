"""The steps of a partition on Ray: what runs in its tasks and actors.

A step's error is a result as well, in a `Failure`: raised in a step, Ray would log it with a
traceback. Steps pass pickled values in tables of one row.
"""

from __future__ import annotations

import os
import pickle
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from bge_client import BGEError, FingerprintError

from .engine import Engine, EngineOptions, tokenize
from .folder import OutputFolder
from .job import Group
from .manifest import Manifest, ModelIdentity
from .partition import Computed, Documents, Result, collect, parse, write
from .sources import Source

if TYPE_CHECKING:
    from bge_worker.engine.tokenizer import Encoded


class Failure(NamedTuple):
    """A step's error, in place of its result."""

    error: Exception


@dataclass(frozen=True)
class Prepared:
    """The documents of a partition, without texts, and the tokens of each."""

    documents: Documents
    encoded: list[Encoded]


@dataclass(frozen=True)
class Context:
    """What every step knows. The manifest has no partitions: there may be 100,000."""

    source: Source
    folder: OutputFolder
    manifest: Manifest
    engine: EngineOptions


def identify(options: EngineOptions, engine_class: type[Engine]) -> ModelIdentity | Failure:
    try:
        engine = engine_class(options)
        return replace(engine.identity, probe=engine.probe())
    except Exception as error:
        return Failure(_shown(error, "loading the model"))


def prepare(batch: pa.Table, context: Context) -> Iterator[pa.Table]:
    """Read, parse and tokenise the partitions of a group."""
    # One thread for each task: Ray starts as many tasks as there are CPUs.
    os.environ.setdefault("RAYON_NUM_THREADS", "1")
    group: Group = from_row(batch)
    options = context.manifest.options
    try:
        parts = zip(group.numbers, group.parts, context.source.read(group.parts), strict=True)
        for number, part, rows in parts:
            documents = parse(number, part, rows, options.text_fields)
            encoded = tokenize(context.engine.folder, documents.texts, options.max_length)
            documents.texts.clear()
            yield to_row(Prepared(documents, encoded))
    except Exception as error:
        yield to_row(Failure(_shown(error, "reading the source")))


class EmbedActor:
    """One engine, on one GPU or some threads."""

    def __init__(self, context: Context, engine_class: type[Engine]) -> None:
        self._manifest = context.manifest
        self._name = f"{socket.gethostname()}/{os.getpid()}"
        self._failure: Failure | None = None
        try:
            self._engine = engine_class(context.engine)
            self._check_model()
        except Exception as error:
            self._failure = Failure(_shown(error, "loading the model"))

    def _check_model(self) -> None:
        identity, expected = self._engine.identity, self._manifest.model
        if identity.fingerprint != expected.fingerprint:
            raise FingerprintError(
                f"the job is of {expected.model}, fingerprint {expected.fingerprint}. Node "
                f"{socket.gethostname()} has {identity.model}, {identity.fingerprint}"
            )

    def __call__(self, batch: pa.Table) -> pa.Table:
        prepared = from_row(batch)
        if self._failure or isinstance(prepared, Failure):
            return to_row(self._failure or prepared)
        try:
            return to_row(self._embed(prepared))
        except Exception as error:
            return to_row(Failure(_shown(error, "embedding")))

    def _embed(self, prepared: Prepared) -> Result:
        start = time.perf_counter()
        vectors = self._engine.embed(prepared.encoded, self._manifest.options)
        tokens = [len(text.ids) for text in prepared.encoded]
        computed = Computed(
            vectors=vectors,
            tokens=tokens,
            truncated=[text.truncated for text in prepared.encoded],
            total_tokens=sum(tokens),
            seconds=time.perf_counter() - start,
            fingerprint=self._engine.identity.fingerprint,
            device=self._engine.device,
            actor=self._name,
        )
        return collect(self._manifest, prepared.documents, computed)


def write_result(batch: pa.Table, context: Context) -> pa.Table:
    """Write the files of a partition."""
    result = from_row(batch)
    if isinstance(result, Failure):
        return batch
    try:
        return to_row(write(context.folder, context.manifest, result))
    except Exception as error:
        return to_row(Failure(_shown(error, "writing")))


def _shown(error: Exception, step: str) -> Exception:
    """Return an error that may be shown: the message of any other may quote a text."""
    if isinstance(error, BGEError | OSError):
        return error
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    name = os.path.basename(frame.tb_frame.f_code.co_filename) if frame else "?"
    line = frame.tb_lineno if frame else 0
    return BGEError(f"{step} failed: {type(error).__name__} at {name}:{line}. This is a bug.")


def to_row(value: object) -> pa.Table:
    """Return a table of one row. `large_binary`: a partition may have more than 2 GB."""
    return pa.table({"value": pa.array([pickle.dumps(value, 5)], pa.large_binary())})


def from_row(batch: pa.Table) -> Any:
    """Return the value of a table that `to_row` made."""
    return pickle.loads(batch["value"][0].as_buffer())
