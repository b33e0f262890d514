"""RunPod's own API on one machine: jobs that are queued, run, polled, cancelled and kept a while.

    submit ─▶ IN_QUEUE ─▶ IN_PROGRESS ─▶ COMPLETED | FAILED | CANCELLED | TIMED_OUT ─▶ forgotten

As on the platform, a worker holds `BGE_CONCURRENCY` jobs at once, the result of a `/runsync` is
kept one minute and that of a `/run` thirty (docs.runpod.io, "Send requests"). All of it lives on
the event loop, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import orjson

from ..errors import OverloadedError, ValidationError, WorkerError
from ..serving.requests import kind_of, without_nulls
from .memory import HeldBytes

RUNSYNC_KEPT, RUN_KEPT = 60.0, 1800.0  # seconds
EXECUTION_TIMEOUT_MS, TTL_MS = 600_000, 86_400_000  # the platform's defaults
MAX_MS = 604_800_000  # seven days
KEPT_BYTES = 1 << 30  # beyond this the oldest results go first
JOB_BYTES = 2048  # of a job without its output, about

IN_QUEUE, IN_PROGRESS, COMPLETED = "IN_QUEUE", "IN_PROGRESS", "COMPLETED"
FAILED, CANCELLED, TIMED_OUT = "FAILED", "CANCELLED", "TIMED_OUT"

Answer = Callable[[bytes], Awaitable[bytes]]  # the body it came in → the JSON of its reply
Loaded = Callable[[], Awaitable[object]]  # returns once there are models to answer with


@dataclass(frozen=True)
class Order:
    """What was sent to `/run` or `/runsync`; the times are seconds.

    It waits as it came: parsed, it may take 25 times the memory.
    """

    body: bytes
    execution_timeout: float
    ttl: float


@dataclass(eq=False)
class Job:
    """One job, from its arrival until it is forgotten."""

    kept: float
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: str = IN_QUEUE
    output: bytes | None = None
    error: str | None = None
    arrived: float = field(default_factory=perf_counter)
    started: float | None = None
    ended: float | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None  # holds the order, until the job is over
    forgetting: asyncio.TimerHandle | None = None

    @property
    def size(self) -> int:
        return JOB_BYTES + len(self.output or b"")


class Jobs:
    """The jobs of one worker."""

    def __init__(
        self,
        answer: Answer,
        loaded: Loaded,
        held: HeldBytes,
        concurrency: int,
        max_queue: int,
    ) -> None:
        self._answer = answer
        self._loaded = loaded
        self._held = held
        self._slots = asyncio.Semaphore(concurrency)
        self._max_queue = max_queue
        self._jobs: dict[str, Job] = {}  # in the order of their arrival
        self._open = 0
        self._kept_bytes = 0
        self._counts = dict.fromkeys((COMPLETED, FAILED, CANCELLED, TIMED_OUT), 0)
        self._worker = os.environ.get("RUNPOD_POD_ID", socket.gethostname())

    def submit(self, order: Order, kept: float) -> Job:
        """Queue a job.

        Raises:
            OverloadedError: as many jobs, or bytes of them, as may be held are not over yet.
        """
        if self._open >= self._max_queue:
            raise OverloadedError(f"{self._open} jobs are waiting; try again later")
        self._held.take(len(order.body))
        self._open += 1
        job = Job(kept)
        self._jobs[job.id] = job
        job.task = asyncio.create_task(self._run(job, order))
        job.task.add_done_callback(lambda _: self._held.give_back(len(order.body)))
        return job

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def cancel(self, job: Job) -> None:
        """Give its place in the queue up; a job that is over stays as it is."""
        if not job.over.is_set() and job.task is not None:
            job.task.cancel()
            self._end(job, CANCELLED)

    def reply(self, job: Job) -> bytes:
        """RunPod's object for the job as it stands."""
        body: dict[str, Any] = {"id": job.id, "status": job.status}
        if job.started is not None:
            body["delayTime"] = round((job.started - job.arrived) * 1e3)
            body["workerId"] = self._worker
        if job.ended is not None:
            body["executionTime"] = round((job.ended - (job.started or job.ended)) * 1e3)
        if job.output is not None:
            body["output"] = orjson.Fragment(job.output)
        if job.error is not None:
            body["error"] = job.error
        return orjson.dumps(body)

    def health(self, *, loaded: bool, healthy: bool) -> dict[str, dict[str, int]]:
        """RunPod's `/health`: what jobs there are and were, and this one worker."""
        states = [job.status for job in self._jobs.values()]
        running = IN_PROGRESS in states
        ready = loaded and healthy
        return {
            "jobs": {
                "completed": self._counts[COMPLETED],
                "failed": self._counts[FAILED] + self._counts[TIMED_OUT],
                "inProgress": states.count(IN_PROGRESS),
                "inQueue": states.count(IN_QUEUE),
                "retried": 0,
            },
            "workers": {
                "idle": int(ready and not running),
                "initializing": int(not loaded),
                "ready": int(ready),
                "running": int(running),
                "throttled": 0,
                "unhealthy": int(loaded and not healthy),
            },
        }

    async def _run(self, job: Job, order: Order) -> None:
        running = asyncio.timeout(None)
        try:
            async with asyncio.timeout(order.ttl):
                await self._loaded()  # a cold start is waiting, not running
                async with self._slots:
                    job.status, job.started = IN_PROGRESS, perf_counter()
                    async with asyncio.timeout(order.execution_timeout) as running:
                        job.output = await self._answer(order.body)
        except TimeoutError:
            limit = ("executionTimeout", order.execution_timeout)
            name, seconds = limit if running.expired() else ("ttl", order.ttl)
            job.error = f"TimeoutError: `policy.{name}` of {seconds * 1e3:.0f} ms is over"
            self._end(job, TIMED_OUT)
        except WorkerError as error:
            job.error = str(error)
            self._end(job, FAILED)
        else:
            self._end(job, COMPLETED)

    def _end(self, job: Job, status: str) -> None:
        job.status, job.ended = status, perf_counter()
        job.over.set()
        self._counts[status] += 1
        self._open -= 1
        self._kept_bytes += job.size
        job.task = None
        job.forgetting = asyncio.get_running_loop().call_later(job.kept, self._forget, job)
        for older in list(self._jobs.values()) if self._kept_bytes > KEPT_BYTES else ():
            if older.over.is_set() and older is not job and self._kept_bytes > KEPT_BYTES:
                self._forget(older)

    def _forget(self, job: Job) -> None:
        if self._jobs.pop(job.id, None) is not None and job.forgetting is not None:
            job.forgetting.cancel()  # its handle would keep the job until then
            self._kept_bytes -= job.size


def read_order(body: object, raw: bytes) -> Order:
    """Read the body of `/run` or `/runsync`, which came as `raw`.

    Raises:
        ValidationError: no `input`, a `policy` that is none, or a `webhook`, which nobody here
            would call. What `input` holds is the worker's business, and wrong is a FAILED job.
    """
    if not isinstance(body, dict) or "input" not in body:
        raise ValidationError("the body must be an object with `input`")
    if body.get("webhook") is not None:
        raise ValidationError("`webhook` is not called by this server: poll `/status/{id}`")
    policy = {} if body.get("policy") is None else body["policy"]
    if not isinstance(policy, dict):
        raise ValidationError(f"`policy` must be an object. Given: {kind_of(policy)}")
    policy = without_nulls(policy)
    return Order(
        body=raw,
        execution_timeout=_milliseconds(policy, "executionTimeout", EXECUTION_TIMEOUT_MS),
        ttl=_milliseconds(policy, "ttl", TTL_MS),
    )


def _milliseconds(policy: dict[str, Any], field: str, default: int) -> float:
    """In seconds. Raises ValidationError: not a whole number of milliseconds."""
    value = policy.get(field, default)
    if type(value) is not int or not 1 <= value <= MAX_MS:
        given = value if type(value) is int else kind_of(value)
        raise ValidationError(
            f"`policy.{field}` must be 1 to {MAX_MS} milliseconds. Given: {given}"
        )
    return value / 1e3
