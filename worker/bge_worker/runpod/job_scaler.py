"""RunPod's SDK, with the behaviour changed that loses results or costs more than a request.

Written against version 1.12.0, which `worker/requirements.txt` pins; `tests/worker/test_handler.py`
looks whether another has still what is built on here.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable
from types import ModuleType, SimpleNamespace
from typing import Any, cast

from .delivery import Delivery

log = logging.getLogger(__name__)

LOOK_UP_SECONDS = 0.1  # how often an idle worker looks whether it may go
GATHER_SECONDS = 0.02  # from a slot that is free to asking for jobs: those that end together count
FAILED_SECONDS = 1.0  # between two polls of which one failed: the SDK's loop would not pause
JOB_FIELDS = ("id", "input", "batchId")  # that the SDK or the handler reads


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
    kill_worker: Callable[[], None]  # tells it to stop
    handle_job: Callable[[Any, dict[str, Any]], Coroutine[Any, Any, None]]

    def __init__(self, config: dict[str, Any]) -> None:
        from runpod.serverless.modules.rp_http import JOB_DONE_URL

        super().__init__(config)  # type: ignore[call-arg]
        this: Any = self  # with what the SDK's class has
        self._progress = this.job_progress
        self._taking = True
        self._ended = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._died = False
        self._fetch, self._fetch_seconds = this.jobs_fetcher, this.jobs_fetcher_timeout
        this.jobs_fetcher, this.jobs_fetcher_timeout = self._fetch_when_free, None
        self._delivery = Delivery(JOB_DONE_URL)
        this.jobs_handler = self._answer
        # One slot more than is ever filled, so that the SDK never finds them full.
        modifier = this.concurrency_modifier
        this.concurrency_modifier = lambda current: modifier(current) + 1

    def current_occupancy(self) -> int:
        """Jobs taken and not answered. The SDK's own counts those in its queue twice."""
        return int(self._progress.get_job_count())

    def start(self) -> None:
        """Work until told to stop; SIGHUP drains like SIGTERM.

        Raises:
            SystemExit: with code 1, a loop died. Without it the worker would go on to ping, and
                RunPod would send it jobs that nobody answers.
        """
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
            signal.signal(signal.SIGHUP, lambda *_: self.kill_worker())
        super().start()  # type: ignore[misc]
        if self._died:
            sys.exit(1)

    async def run(self) -> None:
        """Run the SDK's loops; if one of them dies, finish what is in flight and stop."""
        from runpod.http_client import AsyncClientSession

        async with AsyncClientSession() as session:
            taking = asyncio.create_task(self.get_jobs(session))
            running = asyncio.create_task(self.run_jobs(session))
            stops = asyncio.create_task(cast(Any, self).monitor_stop_signals(session))
            running.add_done_callback(lambda _: stops.cancel())  # nothing is left to stop
            loops = (taking, running, stops)
            await asyncio.wait(loops, return_when=asyncio.FIRST_EXCEPTION)
            for loop in loops:
                if loop.done() and not loop.cancelled() and loop.exception() is not None:
                    self._died = True
                    name = type(loop.exception()).__name__
                    log.error("a loop of the worker died of %s: it stops", name)
            if self._died:
                self.kill_worker()
                if running.done():  # nobody would answer what another poll brings
                    taking.cancel()
                await asyncio.wait(loops)
                await asyncio.gather(*self._running, return_exceptions=True)

    async def _answer(self, session: Any, config: dict[str, Any], job: dict[str, Any]) -> None:
        """Run the handler and post what it returns; in the place of the SDK's, which posts once."""
        from runpod.serverless.modules.rp_job import run_job

        result = await run_job(config["handler"], job)
        # Neither the input nor the result as objects is held until the result is posted.
        job.pop("input", None)
        self._progress.get(job["id"]).input = None
        posting = self._delivery.post(session, job["id"], result)
        del result
        await posting

    async def _fetch_when_free(self, session: Any, needed: int) -> Any:
        while needed < 2 and self.is_alive():
            self._ended.clear()
            await self._ended.wait()
            await asyncio.sleep(GATHER_SECONDS)
            needed = self.current_concurrency - self.current_occupancy()
        if not self.is_alive():
            return []
        try:
            fetched = await asyncio.wait_for(self._fetch(session, needed - 1), self._fetch_seconds)
        except Exception:
            await asyncio.sleep(FAILED_SECONDS)
            raise
        return list(self._jobs_in(fetched or ()))

    def _jobs_in(self, fetched: Iterable[object]) -> Iterable[dict[str, Any]]:
        """What can be answered: has an id, and is not in flight here already."""
        seen = {str(job) for job in self._progress}
        for job in fetched:
            job_id = job.get("id") if isinstance(job, dict) else None
            if not isinstance(job, dict) or not isinstance(job_id, str) or not job_id:
                log.error("RunPod sent a job without an id: skipped")
            elif job_id in seen:
                log.warning("job %s: sent again while it is in flight: skipped", job_id)
            else:
                seen.add(job_id)
                yield {name: job[name] for name in JOB_FIELDS if name in job}

    async def get_jobs(self, session: Any) -> None:
        try:
            await super().get_jobs(session)  # type: ignore[misc]
        finally:
            self._taking = False

    async def run_jobs(self, session: Any) -> None:
        """Until the worker is told to stop and what it has taken is answered: a poll that was open
        then may still bring a job, which the SDK's own loop would not see any more."""

        def done(task: asyncio.Task[None]) -> None:
            self._running.discard(task)
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
            self._running.add(task)
            task.add_done_callback(done)
        await asyncio.gather(*self._running, return_exceptions=True)
