"""Embed the partitions of a job on Ray Data.

    groups ─ prepare (tasks) ─▶ texts' tokens ─ embed (actors) ─▶ vectors ─ write (tasks) ─▶ entries

A row of the dataset is a whole partition: Ray may split blocks between rows, never within one.
Every step gives the same result when it is run again, so Ray may retry it.
`ray_steps.py` has the steps.
"""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionResources, TaskPoolStrategy
from ray.exceptions import RayError

from bge_client import BGEError, ConfigurationError

from . import ray_steps
from .engine import Engine, EngineOptions
from .job import Group, Job
from .manifest import Entry, ModelIdentity
from .ray_steps import Context, EmbedActor, Failure, prepare, write_result

GROUP = 16  # partitions that a task reads in one pass over a file
# Tasks of each kind for an actor, so that it never waits. A card takes the texts of several cores.
TASKS_PER_GPU, TASKS_PER_CPU_ACTOR = 8, 1
IN_FLIGHT = 2  # partitions handed to an actor: the next one is there when it has finished one
ACTOR_BYTES = 1 << 30  # of the object store for each actor
MAX_RETRIES = 10  # of a partition: a text that kills every process ends the job
INIT_DEATHS = 3  # actors in a row that may die while they load, of memory or with their node


@dataclass(frozen=True)
class Pool:
    """The actors: how many at most, and whether each reserves a GPU or `threads` CPUs."""

    actors: int
    threads: int
    on_gpus: bool

    @property
    def resources(self) -> dict[str, float]:
        # Ray Data would add a CPU to each GPU: where there are no more, no task could start.
        return {"num_gpus": 1, "num_cpus": 0} if self.on_gpus else {"num_cpus": self.threads}

    @property
    def tasks(self) -> int:
        """Tasks that prepare, and tasks that write, at the same time."""
        return self.actors * (TASKS_PER_GPU if self.on_gpus else TASKS_PER_CPU_ACTOR)

    @property
    def step_cpus(self) -> float:
        """CPUs of a task that prepares or writes. Actors on CPUs may have reserved all of them."""
        return 1 if self.on_gpus else 0


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
            # Ray tries 20 times to connect, for 40 s each. Once is enough.
            os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
            ray.init(address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"Ray at {address or 'this machine'}: {error}") from None


def choose_pool(actors: int | None, threads: int | None, device: str) -> Pool:
    """Return an actor for each GPU of the cluster, or for each machine, with all its CPUs.

    Raises:
        ConfigurationError: the cluster lacks the GPUs or CPUs, or `threads` are for GPUs.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = 0 if device == "cpu" else int(sum(node.get("GPU", 0) for node in nodes))
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if device == "cuda" and not gpus:
        raise ConfigurationError("--device is cuda, and Ray has no GPU")
    if gpus and threads:
        raise ConfigurationError("--threads means nothing on GPUs: pass --device cpu too")
    if not cpus:
        raise ConfigurationError("Ray has no CPU: wait until its nodes have started")
    if threads and threads > max(cpus):
        raise ConfigurationError(
            f"--threads must be at most the CPUs of a machine, {max(cpus)}. Given: {threads}"
        )
    count = actors or gpus or len(cpus)
    on_each_machine = -(-count // len(cpus))
    return Pool(count, threads or max(1, min(cpus) // on_each_machine), on_gpus=gpus > 0)


def identify(
    options: EngineOptions, pool: Pool, engine_class: type[Engine] = Engine
) -> ModelIdentity:
    """Return the model in the folder, with its probe. Loads it on a node: the driver may not have
    it.

    Raises:
        ConfigurationError: the folder or the device is not usable.
        BGEError: the process that loads it dies.
    """
    # `max_calls` ends the process, which would hold the weights.
    task = ray.remote(max_calls=1, **pool.resources)(ray_steps.identify)
    try:
        identity = ray.get(task.remote(_with_threads(options, pool), engine_class))
    except RayError as error:
        raise _ray_error(error) from None
    if isinstance(identity, Failure):
        raise identity.error
    assert isinstance(identity, ModelIdentity)
    return identity


def run(
    job: Job, options: EngineOptions, pool: Pool, engine_class: type[Engine] = Engine
) -> Generator[Entry, None, None]:
    """Embed what is pending, and yield the entry of each partition that was written.

    Raises:
        BGEError: a step failed, or Ray did. Partitions that were written stay.
        OSError: a file cannot be read or written.
    """
    count = len(job.manifest.partitions) - len(job.finished)
    groups = job.pending(max(1, min(GROUP, count // pool.tasks)))
    if not groups:
        return
    dataset = _dataset(job, groups, options, pool, engine_class)
    try:
        for batch in dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
            entry = ray_steps.from_row(batch)
            if isinstance(entry, Failure):
                raise entry.error
            yield entry
    except RayError as error:
        raise _ray_error(error) from None


def _ray_error(error: RayError) -> BGEError:
    reason = str(error).partition("\n")[0]
    return BGEError(f"Ray failed: {type(error).__name__}: {reason}. Run it again to resume")


def _dataset(
    job: Job, groups: list[Group], options: EngineOptions, pool: Pool, engine_class: type[Engine]
) -> Dataset:
    """Build the pipeline. Memory stays flat: `tasks` and `IN_FLIGHT` bound what is computed, and
    Ray starts no task while what waits fills `ACTOR_BYTES`."""
    _set_context(pool)
    manifest = replace(job.manifest, partitions=[])
    context = Context(job.source, job.folder, manifest, _with_threads(options, pool))
    items = [{"value": pickle.dumps(group)} for group in groups]
    tasks = TaskPoolStrategy(size=min(pool.tasks, len(items)))  # Ray warns of more
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
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of `_retries`
        dataset = dataset.map_batches(
            EmbedActor,
            fn_constructor_args=(context, engine_class),
            compute=actors,  # restarted without limit: Ray Data's default
            ray_remote_args_fn=_retries,
            **pool.resources,
            **steps,
        )
    return dataset.map_batches(
        write_result, fn_args=(context,), compute=tasks, num_cpus=pool.step_cpus, **steps
    )


def _retries() -> dict[str, int]:
    """Ray 2.60 warns that a later version will take this otherwise: hence the bound on `ray`."""
    return {"max_task_retries": MAX_RETRIES}


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
    device = "cuda" if pool.on_gpus else "cpu"
    return replace(options, device=device, threads=None if pool.on_gpus else pool.threads)
