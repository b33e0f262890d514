"""Embed the partitions of a job on Ray Data.

    groups ─ prepare (tasks) ─▶ texts' tokens ─ embed (actors) ─▶ vectors ─ write (tasks) ─▶ entries

A row of the dataset is a whole partition: Ray may split blocks between rows, never within one.
Every step gives the same result when it is run again, so Ray may retry all of them without limit.
An error of a step is a row as well: raised in a step, it would be logged with Ray's traceback.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionResources, TaskPoolStrategy

from bge_client import BGEError, ConfigurationError, FingerprintError

from .engine import Engine, EngineOptions, tokenize
from .folder import OutputFolder
from .job import Group, Job
from .manifest import Entry, Manifest, ModelIdentity
from .partition import Computed, Documents, Result, collect, parse, write
from .sources import Source

if TYPE_CHECKING:
    from bge_worker.engine.tokenizer import Encoded

GROUP = 16  # partitions that a task reads in one pass over a file
TASKS = 2  # of each kind for an actor: an actor never waits for rows to be parsed or written
IN_FLIGHT = 2  # partitions handed to an actor: the next one is there when it has finished one
ACTOR_BYTES = 1 << 30  # of the object store for each actor
INIT_DEATHS = 3  # actors in a row that may die while they load, of memory or with their node


class Failure(NamedTuple):
    """A step's error, in place of its result."""

    error: Exception


@dataclass(frozen=True)
class Pool:
    """The actors: how many at most, and what each reserves. Without GPUs, `threads` CPUs."""

    actors: int
    threads: int
    gpus: int

    @property
    def resources(self) -> dict[str, float]:
        if self.gpus:
            return {"num_gpus": 1, "num_cpus": 1}
        return {"num_cpus": self.threads}

    @property
    def step_cpus(self) -> float:
        """CPUs of a task that prepares or writes. Actors on CPUs may have reserved all of them."""
        return 1 if self.gpus else 0


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


# ---------------------------------------------------------------------------------- driver


def connect(address: str | None) -> None:
    """Connect to a cluster, or start Ray on this machine. Ray's own messages stay in its log files.

    Raises:
        ConfigurationError: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init("local", include_dashboard=False, **quiet)
        else:
            ray.init(address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"Ray at {address or 'this machine'}: {error}") from None


def choose_pool(actors: int | None, threads: int | None, device: str) -> Pool:
    """Return an actor for each GPU of the cluster, or for each machine, with all its CPUs."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = 0 if device == "cpu" else int(sum(node.get("GPU", 0) for node in nodes))
    machines = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not machines:
        raise ConfigurationError("the Ray cluster has no CPU")
    count = actors or gpus or len(machines)
    on_each = -(-count // len(machines))
    return Pool(count, threads or max(1, min(machines) // on_each), gpus)


def identify(
    options: EngineOptions, pool: Pool, engine_class: type[Engine] = Engine
) -> ModelIdentity:
    """Return the model in the folder, with its probe. Loads it on a node: the driver may not have
    it.

    Raises:
        ConfigurationError: the folder or the device is not usable.
    """
    # `max_calls` ends the process, which would hold the weights.
    task = ray.remote(max_calls=1, max_retries=-1, **pool.resources)(_identify)
    identity = ray.get(task.remote(_with_threads(options, pool), engine_class))
    if isinstance(identity, Failure):
        raise identity.error
    assert isinstance(identity, ModelIdentity)
    return identity


def run(
    job: Job, options: EngineOptions, pool: Pool, engine_class: type[Engine] = Engine
) -> Generator[Entry, None, None]:
    """Embed what is pending, and yield the entry of each partition that was written.

    Raises:
        BGEError: a step failed. Partitions that were written stay.
        OSError: a file cannot be read or written.
    """
    groups = job.pending(GROUP)
    count = sum(len(group.numbers) for group in groups)
    groups = job.pending(max(1, min(GROUP, count // (TASKS * pool.actors))))
    if not groups:
        return
    for batch in _dataset(job, groups, options, pool, engine_class).iter_batches(
        batch_size=1, batch_format="pyarrow", prefetch_batches=0
    ):
        entry = _load(batch)
        if isinstance(entry, Failure):
            raise entry.error
        yield entry


def _dataset(
    job: Job, groups: list[Group], options: EngineOptions, pool: Pool, engine_class: type[Engine]
) -> Dataset:
    """Build the pipeline. Memory stays flat: `TASKS` and `IN_FLIGHT` bound what is computed, and
    Ray starts no task while what waits fills `ACTOR_BYTES`."""
    _set_context(pool)
    manifest = replace(job.manifest, partitions=[])
    context = Context(job.source, job.folder, manifest, _with_threads(options, pool))
    items = [{"value": pickle.dumps(group)} for group in groups]
    tasks = TaskPoolStrategy(size=TASKS * pool.actors)
    # Fewer than `actors` will do: those of a node that has vanished need not come back.
    actors = ActorPoolStrategy(
        min_size=1,
        max_size=pool.actors,
        initial_size=pool.actors,
        max_tasks_in_flight_per_actor=IN_FLIGHT,
    )
    steps: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset = dataset.map_batches(
        prepare, fn_args=(context,), compute=tasks, num_cpus=pool.step_cpus, **steps
    )
    dataset = dataset.map_batches(
        EmbedActor,
        fn_constructor_args=(context, engine_class),
        compute=actors,  # restarted, and their tasks retried, without limit: Ray Data's default
        **pool.resources,
        **steps,
    )
    return dataset.map_batches(
        write_result, fn_args=(context,), compute=tasks, num_cpus=pool.step_cpus, **steps
    )


def _set_context(pool: Pool) -> None:
    context = DataContext.get_current()
    limits = ExecutionResources.for_limits(object_store_memory=ACTOR_BYTES * pool.actors)
    context.execution_options.resource_limits = limits
    context.target_max_block_size = 1  # each partition is a block, and goes on at once
    context.execution_options.preserve_order = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = INIT_DEATHS
    context.execution_no_progress_timeout_s = -1  # a partition of long texts takes hours on a CPU


def _with_threads(options: EngineOptions, pool: Pool) -> EngineOptions:
    device = "cuda" if pool.gpus else "cpu"
    return replace(options, device=device, threads=None if pool.gpus else pool.threads)


# ----------------------------------------------------------------------------------- steps


def _identify(options: EngineOptions, engine_class: type[Engine]) -> ModelIdentity | Failure:
    try:
        engine = engine_class(options)
        return replace(engine.identity, probe=engine.probe())
    except Exception as error:
        return Failure(_shown(error, "loading the model"))


def prepare(batch: pa.Table, context: Context) -> Iterator[pa.Table]:
    """Read, parse and tokenise the partitions of a group."""
    # One thread for each task: Ray starts as many tasks as there are CPUs.
    os.environ.setdefault("RAYON_NUM_THREADS", "1")
    group: Group = _load(batch)
    options = context.manifest.options
    try:
        parts = zip(group.numbers, group.parts, context.source.read(group.parts), strict=True)
        for number, part, rows in parts:
            documents = parse(number, part, rows, options.text_fields)
            encoded = tokenize(context.engine.folder, documents.texts, options.max_length)
            documents.texts.clear()
            yield _row(Prepared(documents, encoded))
    except Exception as error:
        yield _row(Failure(_shown(error, "reading the source")))


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
        prepared = _load(batch)
        if self._failure or isinstance(prepared, Failure):
            return _row(self._failure or prepared)
        try:
            return _row(self._embed(prepared))
        except Exception as error:
            return _row(Failure(_shown(error, "embedding")))

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
    result = _load(batch)
    if isinstance(result, Failure):
        return batch
    try:
        return _row(write(context.folder, context.manifest, result))
    except Exception as error:
        return _row(Failure(_shown(error, "writing")))


def _shown(error: Exception, step: str) -> Exception:
    """Return an error that may be shown: the message of any other may quote a text."""
    if isinstance(error, BGEError | OSError):
        return error
    if type(error).__name__ == "StartError":  # of the engine: its message names a folder or option
        return ConfigurationError(str(error))
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    name = os.path.basename(frame.tb_frame.f_code.co_filename) if frame else "?"
    line = frame.tb_lineno if frame else 0
    return BGEError(f"{step} failed: {type(error).__name__} at {name}:{line}. This is a bug.")


def _row(value: object) -> pa.Table:
    """Return a table of one row. `large_binary`: a partition may have more than 2 GB."""
    return pa.table({"value": pa.array([pickle.dumps(value, 5)], pa.large_binary())})


def _load(batch: pa.Table) -> Any:
    return pickle.loads(batch["value"][0].as_buffer())
