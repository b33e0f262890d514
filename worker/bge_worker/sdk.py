"""RunPod's SDK, and what of its ways costs more than an answer of ours.

Written against version 1.12.0, which `worker/requirements.txt` pins; `tests/worker/test_handler.py`
runs the SDK's own loop, so that another version cannot pass unnoticed.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, cast

LOOK_UP_SECONDS = 0.1  # how often an idle worker looks whether it has been told to stop


class Quiet(dict[str, Any]):
    """A reply that the SDK's log lines do not spell out.

    It formats every reply into them twice, whether they are printed or not: 80 ms of the event
    loop for 64 vectors, and the vectors in the log at level DEBUG.
    """

    def __repr__(self) -> str:
        return f"<{len(self)} fields>"


def import_runpod() -> Any:
    """The SDK, its import shortened and its loop made to start jobs as they come."""
    # It asks for the processor's name, for its debugger alone: a second of a core that torch's
    # import needs. Told nothing, it says that it could not find out.
    sys.modules.setdefault("cpuinfo", cast(ModuleType, SimpleNamespace(get_cpu_info=dict)))
    runpod = importlib.import_module("runpod")
    importlib.import_module("runpod.serverless.modules.rp_scale").JobScaler.run_jobs = run_jobs
    return runpod


async def run_jobs(self: Any, session: Any) -> None:
    """In place of `JobScaler.run_jobs`: a job starts when it is there.

    The SDK's own sleeps a tenth of a second whenever it has nothing to do, and beside running jobs
    looks for new ones as often: 50 ms of waiting on average, where a query takes five. How many
    run at once is held by `get_jobs`, which fetches no more than the concurrency allows.
    """
    running: set[asyncio.Task[None]] = set()

    def done(task: asyncio.Task[None]) -> None:
        running.discard(task)
        if not task.cancelled():
            task.exception()  # `handle_job` has logged it; unread, asyncio logs a traceback too

    while self.is_alive() or not self.jobs_queue.empty():
        try:
            job = await asyncio.wait_for(self.jobs_queue.get(), LOOK_UP_SECONDS)
        except TimeoutError:
            continue
        task = asyncio.create_task(self.handle_job(session, job))
        self.jobs_tasks[job["id"]] = task  # by which the SDK stops a job
        running.add(task)
        task.add_done_callback(done)
    await asyncio.gather(*running, return_exceptions=True)
