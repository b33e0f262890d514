"""RunPod's SDK, and what of its ways costs more than an answer of ours.

Written against version 1.12.0, which `worker/requirements.txt` pins; `tests/worker/test_handler.py`
looks whether another has still what is built on here.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable, Coroutine
from types import ModuleType, SimpleNamespace
from typing import Any, cast

LOOK_UP_SECONDS = 0.1  # how often an idle worker looks whether it may go
GATHER_SECONDS = 0.02  # from a slot that is free to asking for jobs: those that end together count


class Quiet(dict[str, Any]):
    """A reply that the SDK's log lines do not spell out.

    It formats every reply into them twice, whether they are printed or not: 80 ms of the event
    loop for 64 vectors, and the vectors in the log at level DEBUG.
    """

    def __repr__(self) -> str:
        return f"<{len(self)} fields>"


def import_runpod() -> Any:
    """The SDK, its import shortened and its loop made to take jobs as they come."""
    # It asks for the processor's name, for its debugger alone: a second of a core that torch's
    # import needs. Told nothing, it says that it could not find out.
    sys.modules.setdefault("cpuinfo", cast(ModuleType, SimpleNamespace(get_cpu_info=dict)))
    runpod = importlib.import_module("runpod")
    scale: Any = importlib.import_module("runpod.serverless.modules.rp_scale")
    scale.JobScaler = type("JobScaler", (PromptScaler, scale.JobScaler), {})
    return runpod


class PromptScaler:
    """Mixed into the SDK's `JobScaler`: a job is fetched when a slot is free and starts at once.

    The SDK's own loop sleeps a tenth of a second when it has nothing to do, and looks for new jobs
    beside running ones as often: 50 ms on average, where a query takes five. When its slots are
    full it sleeps a whole second: with 32 slots, 33 queries a second of the 470 that a worker of
    six layers can answer on two cores. (`make bench-queue`)
    """

    jobs_queue: asyncio.Queue[dict[str, Any]]
    jobs_tasks: dict[str, asyncio.Task[None]]  # by which the SDK stops a job
    current_concurrency: int
    is_alive: Callable[[], bool]  # until it is told to stop
    handle_job: Callable[[Any, dict[str, Any]], Coroutine[Any, Any, None]]

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        this: Any = self  # with what the SDK's class has
        self._progress = this.job_progress
        self._taking = True
        self._ended = asyncio.Event()
        self._fetch, self._fetch_seconds = this.jobs_fetcher, this.jobs_fetcher_timeout
        this.jobs_fetcher, this.jobs_fetcher_timeout = self._fetch_when_free, None
        # One slot more than is ever filled, so that the SDK never finds them full.
        modifier = this.concurrency_modifier
        this.concurrency_modifier = lambda current: modifier(current) + 1

    def current_occupancy(self) -> int:
        """Jobs taken and not answered. The SDK's own counts those in its queue twice."""
        return int(self._progress.get_job_count())

    async def _fetch_when_free(self, session: Any, needed: int) -> Any:
        while needed < 2 and self.is_alive():
            self._ended.clear()
            await self._ended.wait()
            await asyncio.sleep(GATHER_SECONDS)
            needed = self.current_concurrency - self.current_occupancy()
        if not self.is_alive():
            return []
        return await asyncio.wait_for(self._fetch(session, needed - 1), self._fetch_seconds)

    async def get_jobs(self, session: Any) -> None:
        try:
            await super().get_jobs(session)  # type: ignore[misc]
        finally:
            self._taking = False

    async def run_jobs(self, session: Any) -> None:
        """Until the worker is told to stop and what it has taken is answered: a poll that was open
        then may still bring a job, which the SDK's own loop would not see any more."""
        running: set[asyncio.Task[None]] = set()

        def done(task: asyncio.Task[None]) -> None:
            running.discard(task)
            self._ended.set()
            if not task.cancelled():
                task.exception()  # `handle_job` has logged it; unread, asyncio logs a traceback too

        while self._taking or not self.jobs_queue.empty():
            try:
                job = await asyncio.wait_for(self.jobs_queue.get(), LOOK_UP_SECONDS)
            except TimeoutError:
                continue
            task = asyncio.create_task(self.handle_job(session, job))
            self.jobs_tasks[job["id"]] = task
            running.add(task)
            task.add_done_callback(done)
        await asyncio.gather(*running, return_exceptions=True)
