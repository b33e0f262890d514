"""RunPod's jobs on one machine: queued, run, polled, cancelled, and their results kept a while.

    submit ─▶ IN_QUEUE ─▶ IN_PROGRESS ─▶ COMPLETED | FAILED | CANCELLED | TIMED_OUT ─▶ dropped

As on the platform, a worker runs `BGE_CONCURRENCY` jobs at once, and results are kept for a while
(docs.runpod.io, "Send requests"). All state belongs to the event loop, so it needs no lock.
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import orjson

from ..errors import OverloadedError, WorkerError, logged_inference_error
from ..serving.payload import answer_payload
from ..settings import Settings
from .json_codec import JsonParser, to_json
from .loading import LoadingService
from .memory import HeldBytes

MAX_RESULT_BYTES = 1 << 30  # of all results; beyond it the oldest are dropped
JOB_BYTES = 2048  # of a job without its output, approximately

IN_QUEUE, IN_PROGRESS, COMPLETED = "IN_QUEUE", "IN_PROGRESS", "COMPLETED"
FAILED, CANCELLED, TIMED_OUT = "FAILED", "CANCELLED", "TIMED_OUT"


@dataclass(frozen=True)
class JobRequest:
    """The body of a `/run` or `/runsync`, and its policy in seconds.

    The body waits as bytes: parsed, it may take 25 times the memory.
    """

    body: bytes
    execution_timeout: float
    ttl: float


@dataclass(eq=False)
class Job:
    """One job, from its arrival until its result is dropped."""

    keep_seconds: float
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: str = IN_QUEUE
    output: bytes | None = None
    error: str | None = None
    arrived: float = field(default_factory=perf_counter)
    started: float | None = None
    ended: float | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None  # holds the request until the job is over
    dropping: asyncio.TimerHandle | None = None

    @property
    def size(self) -> int:
        return JOB_BYTES + len(self.output or b"")


class Jobs:
    """The jobs of this worker."""

    def __init__(
        self, service: LoadingService, json: JsonParser, held: HeldBytes, settings: Settings
    ) -> None:
        self._service = service
        self._json = json
        self._held = held
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._max_queue = settings.max_queue
        self._jobs: dict[str, Job] = {}  # in the order of their arrival
        self._open = 0
        self._result_bytes = 0
        self._counts = dict.fromkeys((COMPLETED, FAILED, CANCELLED, TIMED_OUT), 0)
        self._worker_id = os.environ.get("RUNPOD_POD_ID", socket.gethostname())

    def submit(self, request: JobRequest, keep_seconds: float) -> Job:
        """Queue a job.

        Raises OverloadedError: the limit of open jobs, or of their bytes, is reached.
        """
        if self._open >= self._max_queue:
            raise OverloadedError(f"{self._open} jobs are waiting; try again later")
        self._held.take(len(request.body))
        self._open += 1
        job = Job(keep_seconds)
        self._jobs[job.id] = job
        job.task = asyncio.create_task(self._run(job, request))
        job.task.add_done_callback(lambda _: self._held.give_back(len(request.body)))
        return job

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def cancel(self, job: Job) -> None:
        """Cancel a job; one that is over stays as it is."""
        if not job.over.is_set() and job.task is not None:
            job.task.cancel()
            self._end(job, CANCELLED)

    def purge(self) -> int:
        """Cancel the jobs in the queue and return their number."""
        queued = [job for job in self._jobs.values() if job.status == IN_QUEUE]
        for job in queued:
            self.cancel(job)
        return len(queued)

    def reply(self, job: Job) -> bytes:
        """Return RunPod's JSON object for the job in its present state."""
        body: dict[str, Any] = {"id": job.id, "status": job.status}
        if job.started is not None:
            body["delayTime"] = round((job.started - job.arrived) * 1e3)
            body["workerId"] = self._worker_id
        if job.ended is not None:
            body["executionTime"] = round((job.ended - (job.started or job.ended)) * 1e3)
        if job.output is not None:
            body["output"] = orjson.Fragment(job.output)
        if job.error is not None:
            body["error"] = job.error
        return orjson.dumps(body)

    def health(self) -> dict[str, dict[str, int]]:
        """Return RunPod's `/health`: counts of jobs, and this one worker."""
        statuses = [job.status for job in self._jobs.values()]
        is_running = IN_PROGRESS in statuses
        is_loaded, is_healthy = self._service.is_loaded, self._service.is_healthy
        return {
            "jobs": {
                "completed": self._counts[COMPLETED],
                "failed": self._counts[FAILED] + self._counts[TIMED_OUT],
                "inProgress": statuses.count(IN_PROGRESS),
                "inQueue": statuses.count(IN_QUEUE),
                "retried": 0,
            },
            "workers": {
                "idle": int(is_healthy and not is_running),
                "initializing": int(not is_loaded),
                "ready": int(is_healthy),
                "running": int(is_running),
                "throttled": 0,
                "unhealthy": int(is_loaded and not is_healthy),
            },
        }

    async def _run(self, job: Job, request: JobRequest) -> None:
        execution = asyncio.timeout(None)
        try:
            async with asyncio.timeout(request.ttl):
                await self._service.wait()  # a cold start counts as waiting
                async with self._slots:
                    job.status, job.started = IN_PROGRESS, perf_counter()
                    async with asyncio.timeout(request.execution_timeout) as execution:
                        job.output = await self._compute(request.body)
        except TimeoutError:
            name, seconds = "ttl", request.ttl
            if execution.expired():
                name, seconds = "executionTimeout", request.execution_timeout
            job.error = f"TimeoutError: `policy.{name}` of {seconds * 1e3:.0f} ms is over"
            self._end(job, TIMED_OUT)
        except Exception as error:
            failure = error if isinstance(error, WorkerError) else logged_inference_error(error)
            job.error = str(failure)
            self._end(job, FAILED)
        else:
            self._end(job, COMPLETED)

    async def _compute(self, body: bytes) -> bytes:
        """Return the JSON of the reply to a job's `input`."""
        service = await self._service.wait()
        payload = (await self._json.parse(body))["input"]
        reply = await answer_payload(service, payload)
        if reply.is_small:
            return to_json(reply.body)
        return await asyncio.to_thread(to_json, reply.body)

    def _end(self, job: Job, status: str) -> None:
        job.status, job.ended = status, perf_counter()
        job.over.set()
        self._counts[status] += 1
        self._open -= 1
        self._result_bytes += job.size
        job.task = None
        loop = asyncio.get_running_loop()
        job.dropping = loop.call_later(job.keep_seconds, self._drop, job)
        for older in list(self._jobs.values()) if self._result_bytes > MAX_RESULT_BYTES else ():
            if older.over.is_set() and older is not job and self._result_bytes > MAX_RESULT_BYTES:
                self._drop(older)

    def _drop(self, job: Job) -> None:
        if self._jobs.pop(job.id, None) is not None and job.dropping is not None:
            job.dropping.cancel()  # the handle would keep the job in memory until then
            self._result_bytes -= job.size
