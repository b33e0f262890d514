"""RunPod's API for the jobs of one worker, also under `/v2/{endpoint}` with any endpoint id."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import orjson
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from ...errors import NotServedError, ValidationError
from ...serving.validation import shortened, validate
from ..jobs import COMPLETED, Job, JobRequest, Jobs
from ..json_codec import JsonParser, to_json
from ..timeouts import Timeouts

DEFAULT_EXECUTION_TIMEOUT_MS, DEFAULT_TTL_MS = 600_000, 86_400_000  # the platform's
MAX_MS = 604_800_000  # seven days
MIN_WAIT_MS, DEFAULT_WAIT_MS, MAX_WAIT_MS = 1000, 90_000, 300_000

Milliseconds = Annotated[int, Meta(ge=1, le=MAX_MS, description="Milliseconds")]


class Policy(msgspec.Struct):
    """Unknown fields are ignored."""

    executionTimeout: Milliseconds | None = None
    ttl: Milliseconds | None = None


class JobBody(msgspec.Struct):
    """Unknown fields are ignored. `input` is validated by the job: a bad one fails the job."""

    input: Any
    policy: Policy | None = None
    webhook: Any = None


class JobReply(TypedDict):
    """`output` once COMPLETED; `error` once FAILED or TIMED_OUT; times in milliseconds."""

    id: str
    status: Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]
    output: NotRequired[Any]
    error: NotRequired[str]
    delayTime: NotRequired[int]
    executionTime: NotRequired[int]
    workerId: NotRequired[str]


class StreamItem(TypedDict):
    output: Any


class StreamReply(TypedDict):
    status: str
    stream: list[StreamItem]


class PurgeReply(TypedDict):
    removed: int
    status: str


class HealthReply(TypedDict):
    jobs: dict[str, int]
    workers: dict[str, int]


class RunPodRoutes:
    """The endpoints; each returns the job's object in its present state."""

    def __init__(self, jobs: Jobs, json: JsonParser, timeouts: Timeouts) -> None:
        self._jobs = jobs
        self._timeouts = timeouts
        self._json = json

    async def run(self, request: Request) -> Response:
        job = self._jobs.submit(await self._read(request), self._timeouts.run_result)
        return self._reply(job)

    async def runsync(self, request: Request) -> Response:
        wait_seconds = read_wait(request) / 1e3
        job = self._jobs.submit(await self._read(request), self._timeouts.runsync_result)
        try:
            await wait_for_end(job, wait_seconds)
        except asyncio.CancelledError:  # the caller is gone and never got the job's id
            self._jobs.cancel(job)
            raise
        return self._reply(job)

    async def status(self, request: Request) -> Response:
        return self._reply(self._job(request))

    async def status_sync(self, request: Request) -> Response:
        """Wait for the end of the job, as RunPod's JavaScript client asks after `/runsync`."""
        wait_seconds = read_wait(request) / 1e3
        job = self._job(request)
        await wait_for_end(job, wait_seconds)
        return self._reply(job)

    async def stream(self, request: Request) -> Response:
        """Return the status and the outputs so far: this worker streams none, so one at the end."""
        job = self._job(request)
        output = job.output if job.status == COMPLETED else None
        stream = [] if output is None else [{"output": orjson.Fragment(output)}]
        body = orjson.dumps({"status": job.status, "stream": stream})
        return Response(body, media_type="application/json")

    async def purge_queue(self, request: Request) -> Response:
        """Cancel the jobs that are not running yet."""
        removed = self._jobs.purge()
        body = to_json({"removed": removed, "status": "completed"})
        return Response(body, media_type="application/json")

    async def cancel(self, request: Request) -> Response:
        job = self._job(request)
        self._jobs.cancel(job)
        return self._reply(job)

    async def health(self, request: Request) -> Response:
        return Response(to_json(self._jobs.health()), media_type="application/json")

    async def _read(self, request: Request) -> JobRequest:
        """Raises ValidationError: no `input`, a bad `policy`, or a `webhook`: none is called."""
        raw = await request.body()
        body = validate(await self._json.parse(raw), JobBody, "body")
        if body.webhook is not None:
            raise ValidationError("`webhook` is not called by this server: poll `/status/{id}`")
        policy = body.policy or Policy()
        execution_timeout = policy.executionTimeout or DEFAULT_EXECUTION_TIMEOUT_MS
        ttl = policy.ttl or DEFAULT_TTL_MS
        return JobRequest(raw, execution_timeout / 1e3, ttl / 1e3)

    def _job(self, request: Request) -> Job:
        job = self._jobs.get(request.path_params["job_id"])
        if job is None:
            raise NotServedError("no such job, or its result is no longer kept")
        return job

    def _reply(self, job: Job) -> Response:
        return Response(self._jobs.reply(job), media_type="application/json")


async def wait_for_end(job: Job, seconds: float) -> None:
    """Wait at most so long: the caller polls after that."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await job.over.wait()


def read_wait(request: Request) -> int:
    """Return the milliseconds that the caller waits for the end of the job.

    Raises ValidationError: `wait` is not an integer in its range.
    """
    value = request.query_params.get("wait", str(DEFAULT_WAIT_MS))
    is_number = value.isascii() and value.isdigit() and len(value) <= 9
    if not is_number or not MIN_WAIT_MS <= int(value) <= MAX_WAIT_MS:
        given = shortened(int(value)) if is_number else "not an integer"
        raise ValidationError(
            f"`wait` must be an integer, from {MIN_WAIT_MS} to {MAX_WAIT_MS}. Given: {given}"
        )
    return int(value)
