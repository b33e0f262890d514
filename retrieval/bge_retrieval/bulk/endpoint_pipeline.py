"""Embed the partitions of a job through an endpoint, in threads of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from bge_client import (
    Client,
    Embedding,
    FingerprintError,
    InferenceError,
    OutOfMemoryError,
    Probe,
    TooLargeError,
    ValidationError,
)
from bge_client.results import EmbedResult

from .job import Group, Job
from .manifest import Entry, ModelIdentity, Options
from .partition import Computed, Documents, collect, parse, write

# While one partition waits for its last responses or is written, the other keeps the endpoint busy.
THREADS = 2
SLICE = 1024  # texts of a call: what is sent again if one of them fails
TEXT_ERRORS = (ValidationError, TooLargeError, OutOfMemoryError, InferenceError)


def identify(client: Client) -> ModelIdentity:
    """Return the model of an endpoint, with its probe."""
    probe = Probe.record(client)
    models: Any = client.info()["models"]
    revision = models["embed"].get("revision")
    return ModelIdentity(
        probe.model, revision, probe.fingerprint, probe.dimensions, probe.as_dict()
    )


def run(job: Job, client: Client) -> Generator[Entry, None, None]:
    """Embed what is pending, and yield the entry of each partition that was written.

    Closing the iterator abandons the threads: the client cancels their jobs at exit.

    Raises:
        BGEError: the endpoint fails, or serves another model.
        OSError: a file cannot be read or written.
    """
    pending: SimpleQueue[Group] = SimpleQueue()
    groups = job.pending(1)
    for group in groups:
        pending.put(group)
    finished: SimpleQueue[Entry | Exception] = SimpleQueue()
    for _ in range(THREADS):
        threading.Thread(target=_work, args=(job, client, pending, finished), daemon=True).start()
    for _ in groups:
        entry = finished.get()
        if isinstance(entry, Exception):
            raise entry
        yield entry


def _work(
    job: Job,
    client: Client,
    pending: SimpleQueue[Group],
    finished: SimpleQueue[Entry | Exception],
) -> None:
    try:
        while True:
            finished.put(_run_group(job, client, pending.get_nowait()))
    except Empty:
        return
    except Exception as error:
        finished.put(error)


def _run_group(job: Job, client: Client, group: Group) -> Entry:
    """Run a group of one partition."""
    (number,) = group.numbers
    (rows,) = job.source.read(group.parts)
    documents = parse(number, group.parts[0], rows, job.manifest.options.text_fields)
    computed = _compute(job, client, documents)
    return write(job.folder, job.manifest, collect(job.manifest, documents, computed))


def _compute(job: Job, client: Client, documents: Documents) -> Computed:
    start = time.perf_counter()
    vectors: list[Embedding | Exception] = []
    tokens = 0
    for first in range(0, len(documents.texts), SLICE):
        texts = documents.texts[first : first + SLICE]
        for result in _embed(client, texts, job.manifest.options):
            if isinstance(result, Exception):
                vectors.append(result)
                continue
            if result.fingerprint != job.manifest.model.fingerprint:
                raise FingerprintError(
                    f"the job is of model {job.manifest.model.fingerprint}. The endpoint gave "
                    f"vectors of {result.fingerprint}"
                )
            vectors += result
            tokens += result.usage.prompt_tokens
    return Computed(
        vectors=vectors,
        tokens=[None] * len(vectors),
        truncated=[isinstance(row, Embedding) and row.truncated for row in vectors],
        total_tokens=tokens,
        seconds=time.perf_counter() - start,
        fingerprint=job.manifest.model.fingerprint,
        device="endpoint",
        actor=threading.current_thread().name,
    )


def _embed(client: Client, texts: Sequence[str], options: Options) -> list[EmbedResult | Exception]:
    """Return the results of the texts in order. Halves them until a failing text is alone."""
    try:
        result = client.embed(
            texts,
            sparse=options.sparse,
            colbert=options.colbert,
            max_length=options.max_length,
            dtype=options.dense_dtype,
        )
    except TEXT_ERRORS as error:
        if len(texts) == 1:
            return [error]
    else:
        return [result]
    middle = len(texts) // 2
    return [*_embed(client, texts[:middle], options), *_embed(client, texts[middle:], options)]
