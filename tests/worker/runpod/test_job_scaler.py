"""The scaler."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from bge_worker.runpod.job_scaler import PromptScaler


class JobScaler:
    """As much of the SDK's as `PromptScaler` uses; job 0 is one that does not end by itself."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.jobs_queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.jobs_tasks: dict[int, asyncio.Task[None]] = {}
        self.job_progress = self
        self.jobs_fetcher, self.jobs_fetcher_timeout = self.fetch, 90
        self.concurrency_modifier = lambda _current: 2
        self.current_concurrency = 3  # what the modifier then gives
        self.handled: list[int] = []
        self.asked: list[int] = []
        self.count = 0
        self.alive = True
        self.told = asyncio.Event()

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def is_alive(self) -> bool:
        return self.alive

    def get_job_count(self) -> int:
        return self.count

    def kill_worker(self) -> None:
        self.alive = False
        self.told.set()

    def start(self) -> None:
        asyncio.run(self.run())

    async def get_jobs(self, session: object) -> None:
        await self.told.wait()

    async def monitor_stop_signals(self, session: object) -> None:
        await turns()
        raise KeyError("a defect of this test's")

    async def fetch(self, session: object, needed: int) -> list[dict[str, Any]]:
        self.asked.append(needed)
        return []

    async def handle_job(self, session: object, job: dict[str, Any]) -> None:
        self.handled.append(job["id"])
        if job["id"] == 0:
            await asyncio.Event().wait()
        self.count -= 1
        raise ValueError("a job of this test's")


class Scaler(PromptScaler, JobScaler):
    """Acts on events alone: no timer expires during a test."""

    stop_check_seconds = 600.0
    gather_seconds = 0.0


async def turns() -> None:
    """Of the event loop; no time passes."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_job_starts_when_it_comes_whether_or_not_others_run() -> None:
    async def scenario() -> None:
        scaler = Scaler({})
        taking = asyncio.create_task(scaler.get_jobs(None))
        loop = asyncio.create_task(scaler.run_jobs(None))
        for job in (1, 0, 2):
            await turns()
            scaler.jobs_queue.put_nowait({"id": job})
        await turns()
        assert scaler.handled == [1, 0, 2]
        scaler.jobs_tasks[0].cancel()  # as the SDK stops a job
        scaler.alive = False
        await turns()
        scaler.told.set()  # a poll that was open when the worker was told to stop ends,
        await taking
        scaler.jobs_queue.put_nowait({"id": 3})  # and has brought a job
        await loop
        assert scaler.handled == [1, 0, 2, 3]

    asyncio.run(scenario())


def test_jobs_are_asked_for_when_a_slot_is_free_and_only_as_many() -> None:
    async def scenario() -> None:
        scaler = Scaler({})
        assert scaler.concurrency_modifier(1) == scaler.current_concurrency
        scaler.count = 1
        await scaler.jobs_fetcher(None, scaler.current_concurrency - scaler.current_occupancy())
        assert scaler.asked == [1]
        scaler.count = 2
        waiting = asyncio.create_task(scaler.jobs_fetcher(None, 1))
        loop = asyncio.create_task(scaler.run_jobs(None))
        await turns()
        assert scaler.asked == [1], "both slots are taken"
        scaler.jobs_queue.put_nowait({"id": 1})  # one ends
        await waiting
        assert scaler.asked == [1, 1]
        scaler.alive = False
        assert await scaler.jobs_fetcher(None, 3) == []
        assert scaler.asked == [1, 1], "a worker that stops takes nothing"
        loop.cancel()

    asyncio.run(scenario())


def test_a_loop_that_dies_ends_the_process_with_1_after_what_is_in_flight() -> None:
    class WithJob(Scaler):
        stop_check_seconds = 0.01

        async def handle_job(self, session: object, job: dict[str, Any]) -> None:
            while self.alive:
                await asyncio.sleep(0)
            self.handled.append(job["id"])

    scaler = WithJob({})
    scaler.jobs_queue.put_nowait({"id": 1})
    with pytest.raises(SystemExit) as ending:
        scaler.start()
    assert ending.value.code == 1
    assert scaler.handled == [1]


def test_the_sdk_has_what_is_built_on() -> None:
    scale = importlib.import_module("runpod.serverless.modules.rp_scale")
    built_on = {
        *("get_jobs", "run_jobs", "handle_job", "current_occupancy"),
        *("start", "run", "monitor_stop_signals", "kill_worker"),
    }
    assert built_on <= vars(scale.JobScaler).keys()
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
