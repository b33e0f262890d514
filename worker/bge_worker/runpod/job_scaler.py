"""RunPod's SDK, without the behaviour that loses results or costs more than a request.

Written against version 1.12.0, which `worker/requirements.txt` pins.
`tests/worker/runpod/test_job_scaler.py` checks that a version has what this module builds on.
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

JOB_FIELDS = ("id", "input", "batchId")  # those that the SDK or the handler reads


class UnloggedReply(dict[str, Any]):
    """A reply that the SDK's log lines do not contain.

    The SDK formats every reply into log lines twice, even if they are not printed: 80 ms of the
    event loop for 64 vectors, and the vectors in the log at level DEBUG.
    """

    def __repr__(self) -> str:
        return f"<{len(self)} fields>"


def import_runpod() -> Any:
    """Import the SDK faster, and with `PromptScaler` in its `JobScaler`."""
    # For its debugger the SDK imports cpuinfo to find the processor's name: a second of a core that
    # torch's import needs. Without a name it logs that there is none.
    sys.modules.setdefault("cpuinfo", cast(ModuleType, SimpleNamespace(get_cpu_info=dict)))
    runpod = importlib.import_module("runpod")
    scale: Any = importlib.import_module("runpod.serverless.modules.rp_scale")
    scale.JobScaler = type("JobScaler", (PromptScaler, scale.JobScaler), {})
    return runpod


class PromptScaler:
    """Mixed into the SDK's `JobScaler`: fetches a job when a slot is free and starts it at once.

    The SDK's own loop sleeps a tenth of a second when it is idle, and polls for jobs beside running
    ones as often: 50 ms on average, where a query takes five. When its slots are full it sleeps a
    whole second: with 32 slots, 33 queries a second of the 470 that a worker of six layers can
    answer on two cores. (`make bench-queue`)
    """

    stop_check_seconds = 0.1  # how often an idle worker checks whether it should stop
    gather_seconds = 0.02  # from a free slot to the next poll, which fills all slots free by then
    failed_poll_seconds = 1.0  # after a failed poll: the SDK's loop would not pause

    jobs_queue: asyncio.Queue[dict[str, Any]]
    jobs_tasks: dict[str, asyncio.Task[None]]  # by job id; the SDK cancels through it
    current_concurrency: int
    is_alive: Callable[[], bool]  # until `kill_worker`
    kill_worker: Callable[[], None]
    handle_job: Callable[[Any, dict[str, Any]], Coroutine[Any, Any, None]]

    def __init__(self, config: dict[str, Any]) -> None:
        from runpod.serverless.modules.rp_http import JOB_DONE_URL

        super().__init__(config)  # type: ignore[call-arg]
        this: Any = self  # with the attributes of the SDK's class
        self._progress = this.job_progress
        self._taking = True
        self._slot_freed = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._died = False
        self._fetch, self._fetch_seconds = this.jobs_fetcher, this.jobs_fetcher_timeout
        this.jobs_fetcher, this.jobs_fetcher_timeout = self._fetch_when_free, None
        self._delivery = Delivery(JOB_DONE_URL)
        this.jobs_handler = self._answer
        # One slot is never filled, so that the SDK never finds them full and sleeps.
        modifier = this.concurrency_modifier
        this.concurrency_modifier = lambda current: modifier(current) + 1

    def current_occupancy(self) -> int:
        """Jobs taken and not answered. The SDK's own method counts queued jobs twice."""
        return int(self._progress.get_job_count())

    def start(self) -> None:
        """Take jobs until a signal. SIGHUP finishes jobs in flight, like SIGTERM.

        Raises:
            SystemExit: with code 1 after a loop died. A process that stayed would keep pinging, and
                RunPod would keep sending it jobs.
        """
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
            signal.signal(signal.SIGHUP, lambda *_: self.kill_worker())
        super().start()  # type: ignore[misc]
        if self._died:
            sys.exit(1)

    async def run(self) -> None:
        """Run the SDK's loops; if one dies, finish the jobs in flight and stop."""
        from runpod.http_client import AsyncClientSession

        async with AsyncClientSession() as session:
            taking = asyncio.create_task(self.get_jobs(session))
            running = asyncio.create_task(self.run_jobs(session))
            stops = asyncio.create_task(cast(Any, self).monitor_stop_signals(session))
            running.add_done_callback(lambda _: stops.cancel())  # no job is left to stop
            loops = (taking, running, stops)
            await asyncio.wait(loops, return_when=asyncio.FIRST_EXCEPTION)
            for loop in loops:
                if loop.done() and not loop.cancelled() and loop.exception() is not None:
                    self._died = True
                    name = type(loop.exception()).__name__
                    log.error("a loop of the worker died of %s: the worker stops", name)
            if self._died:
                self.kill_worker()
                if running.done():  # jobs of another poll would not be answered
                    taking.cancel()
                await asyncio.wait(loops)
                await asyncio.gather(*self._running, return_exceptions=True)

    async def _answer(self, session: Any, config: dict[str, Any], job: dict[str, Any]) -> None:
        """Run the handler and post its reply. Replaces the SDK's, which posts only once."""
        from runpod.serverless.modules.rp_job import run_job

        result = await run_job(config["handler"], job)
        # While the result is posted, neither the input nor the result as objects is kept.
        job.pop("input", None)
        self._progress.get(job["id"]).input = None
        posting = self._delivery.post(session, job["id"], result)
        del result
        await posting

    async def _fetch_when_free(self, session: Any, needed: int) -> list[dict[str, Any]]:
        """Wait for a free slot, then poll RunPod for as many jobs as there are free slots."""
        while needed < 2 and self.is_alive():
            self._slot_freed.clear()
            await self._slot_freed.wait()
            await asyncio.sleep(self.gather_seconds)
            needed = self.current_concurrency - self.current_occupancy()
        if not self.is_alive():
            return []
        try:
            fetched = await asyncio.wait_for(self._fetch(session, needed - 1), self._fetch_seconds)
        except Exception:
            await asyncio.sleep(self.failed_poll_seconds)
            raise
        return list(self._valid_jobs(fetched or ()))

    def _valid_jobs(self, fetched: Iterable[object]) -> Iterable[dict[str, Any]]:
        """Yield the jobs that have an id and are not in flight already."""
        seen = {str(job) for job in self._progress}
        for job in fetched:
            job_id = job.get("id") if isinstance(job, dict) else None
            if not isinstance(job, dict) or not isinstance(job_id, str) or not job_id:
                log.error("RunPod sent a job without an id: skipped")
            elif job_id in seen:
                log.warning("job %s: sent again while in flight: skipped", job_id)
            else:
                seen.add(job_id)
                yield {name: job[name] for name in JOB_FIELDS if name in job}

    async def get_jobs(self, session: Any) -> None:
        try:
            await super().get_jobs(session)  # type: ignore[misc]
        finally:
            self._taking = False

    async def run_jobs(self, session: Any) -> None:
        """Start jobs until the worker stops and all jobs it took are answered.

        A poll that is open when it stops may still return a job, which the SDK's loop would lose.
        """

        def done(task: asyncio.Task[None]) -> None:
            self._running.discard(task)
            self._slot_freed.set()
            if not task.cancelled():
                task.exception()  # logged by `handle_job`; without this call asyncio logs it too

        while self._taking or not self.jobs_queue.empty():
            try:
                job = await asyncio.wait_for(self.jobs_queue.get(), self.stop_check_seconds)
            except TimeoutError:
                continue
            task = asyncio.create_task(self.handle_job(session, job))
            self.jobs_tasks[job["id"]] = task
            self._running.add(task)
            task.add_done_callback(done)
        await asyncio.gather(*self._running, return_exceptions=True)
