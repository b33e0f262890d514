"""`PromptScaler` on a fake of the SDK's `JobScaler`, and what it requires of the real one."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from bge_worker.runpod.job_scaler import PromptScaler


class JobScaler:
    """The part of the SDK's class that `PromptScaler` uses. Job 0 ends only when cancelled."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.jobs_queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.jobs_tasks: dict[int, asyncio.Task[None]] = {}
        self.job_progress = self
        self.jobs_fetcher, self.jobs_fetcher_timeout = self.fetch, 90
        self.concurrency_modifier = lambda _current: 2
        self.current_concurrency = 3  # the modifier's result with the slot that is never filled
        self.handled: list[int] = []
        self.requested: list[int] = []
        self.count = 0
        self.alive = True
        self.stopped = asyncio.Event()

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def is_alive(self) -> bool:
        return self.alive

    def get_job_count(self) -> int:
        return self.count

    def kill_worker(self) -> None:
        self.alive = False
        self.stopped.set()

    def start(self) -> None:
        asyncio.run(self.run())

    async def get_jobs(self, session: object) -> None:
        await self.stopped.wait()

    async def monitor_stop_signals(self, session: object) -> None:
        await run_pending()
        raise KeyError("injected")

    async def fetch(self, session: object, needed: int) -> list[dict[str, Any]]:
        self.requested.append(needed)
        return []

    async def handle_job(self, session: object, job: dict[str, Any]) -> None:
        self.handled.append(job["id"])
        if job["id"] == 0:
            await asyncio.Event().wait()
        self.count -= 1
        raise ValueError("injected")


class Scaler(PromptScaler, JobScaler):
    """No timer expires during a test."""

    stop_check_seconds = 600.0
    gather_seconds = 0.0


async def run_pending() -> None:
    """Let tasks run until all wait; no time passes."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_jobs_start_at_once_beside_running_ones() -> None:
    async def scenario() -> None:
        scaler = Scaler({})
        taking = asyncio.create_task(scaler.get_jobs(None))
        loop = asyncio.create_task(scaler.run_jobs(None))
        for job in (1, 0, 2):
            await run_pending()
            scaler.jobs_queue.put_nowait({"id": job})
        await run_pending()
        assert scaler.handled == [1, 0, 2]
        scaler.jobs_tasks[0].cancel()  # as the SDK stops a job
        scaler.alive = False
        await run_pending()
        scaler.stopped.set()  # the open poll ends
        await taking
        scaler.jobs_queue.put_nowait({"id": 3})  # with a job
        await loop
        assert scaler.handled == [1, 0, 2, 3]

    asyncio.run(scenario())


def test_jobs_are_requested_for_free_slots_alone() -> None:
    async def scenario() -> None:
        scaler = Scaler({})
        assert scaler.concurrency_modifier(1) == scaler.current_concurrency
        scaler.count = 1
        await scaler.jobs_fetcher(None, scaler.current_concurrency - scaler.current_occupancy())
        assert scaler.requested == [1]
        scaler.count = 2
        waiting = asyncio.create_task(scaler.jobs_fetcher(None, 1))
        loop = asyncio.create_task(scaler.run_jobs(None))
        await run_pending()
        assert scaler.requested == [1], "no slot is free"
        scaler.jobs_queue.put_nowait({"id": 1})  # it ends and frees a slot
        await waiting
        assert scaler.requested == [1, 1]
        scaler.alive = False
        assert await scaler.jobs_fetcher(None, 3) == []
        assert scaler.requested == [1, 1], "a stopping worker takes no jobs"
        loop.cancel()

    asyncio.run(scenario())


def test_a_dead_loop_ends_the_process_with_1_after_the_jobs_in_flight() -> None:
    class ScalerWithJob(Scaler):
        stop_check_seconds = 0.01

        async def handle_job(self, session: object, job: dict[str, Any]) -> None:
            while self.alive:
                await asyncio.sleep(0)
            self.handled.append(job["id"])

    scaler = ScalerWithJob({})
    scaler.jobs_queue.put_nowait({"id": 1})
    with pytest.raises(SystemExit) as ending:
        scaler.start()
    assert ending.value.code == 1
    assert scaler.handled == [1]


def test_the_sdk_has_the_attributes_in_use() -> None:
    scale = importlib.import_module("runpod.serverless.modules.rp_scale")
    used = {
        *("get_jobs", "run_jobs", "handle_job", "current_occupancy"),
        *("start", "run", "monitor_stop_signals", "kill_worker"),
    }
    assert used <= vars(scale.JobScaler).keys()
    assert "rp_scale.JobScaler(" in inspect.getsource(
        importlib.import_module("runpod.serverless.worker")
    )
    kind = type("JobScaler", (PromptScaler, scale.JobScaler), {})
    scaler = kind({"concurrency_modifier": lambda _current: 32})
    assert scaler.concurrency_modifier(1) == 33
    assert scaler.jobs_fetcher == scaler._fetch_when_free
    assert scaler._fetch is scale.get_job
    assert scaler.jobs_handler == scaler._answer
    assert "self.jobs_handler(session, self.config, job)" in inspect.getsource(scale.JobScaler)
