"""Wait until a worker answers, and print the states on the way.

each POLL_SECONDS    probe, which also starts a worker; GET /workers; what has changed
ready                the probe was answered, and not by a worker of an older version
failed               a worker is unhealthy, or starts again and again: exit code 3
not ready            nothing has failed, but the time is over: exit code 4
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from .api import RunPod, UnavailableError, Worker
from .probes import Probe
from .settings import DeployError

POLL_SECONDS = 3.0  # below `idleTimeout`, so that no state is missed
UNHEALTHY_SECONDS = 60.0  # that a worker may fail its health checks: its server may not listen yet
MAX_FAILED_STARTS = 3  # of one worker, or of workers that have been replaced
WAITING = "{desc}: {n:.0f} of {total:.0f} s |{bar}|"
REPLACED = "replaced workers"


class WorkerFailedError(DeployError):
    """A worker of the new version cannot start."""

    exit_code = 3


class NotReadyError(DeployError):
    """No worker is ready in time."""

    exit_code = 4


@dataclass
class History:
    """What has been seen of an endpoint's workers. Times are seconds since the start.

    `after_version` is the endpoint's version before the change, whose workers do not count.
    """

    after_version: int | None = None
    workers: Sequence[Worker] = ()
    stages: list[tuple[str, float]] = field(default_factory=list)
    failed_starts: Counter[str] = field(default_factory=Counter)
    was_ready: bool = False
    _unhealthy_since: dict[str, float] = field(default_factory=dict)

    def update(self, workers: Sequence[Worker], now: float) -> list[str]:
        """Return a line for each change."""
        before = {worker.id: worker for worker in self.workers}
        after = {worker.id: worker for worker in workers}
        lines = [worker.description for worker in workers if worker != before.get(worker.id)]
        lines += [f"worker {worker_id}: gone" for worker_id in before if worker_id not in after]
        if not workers and (before or not self.stages):
            lines.append("no worker")
        self.failed_starts.update(
            f"worker {worker.id}" if worker.id in after else REPLACED
            for worker in before.values()
            if has_started_in_vain(worker, after.get(worker.id))
        )
        self.workers = workers
        self.was_ready |= any(worker.is_ready for worker in self.current)
        self._unhealthy_since = {
            worker.id: self._unhealthy_since.get(worker.id, now)
            for worker in self.current
            if worker.status == "UNHEALTHY"
        }
        if not self.stages or self.stages[-1][0] != self.stage:
            self.stages.append((self.stage, now))
        return lines

    @property
    def current(self) -> list[Worker]:
        """The workers of the endpoint's current version."""
        return [worker for worker in self.workers if not worker.is_stale]

    @property
    def stage(self) -> str:
        """How far the worker is that has come furthest."""
        statuses = {worker.status for worker in self.current}
        for status in ("RUNNING", "IDLE", "INITIALIZING", "UNHEALTHY", "THROTTLED"):
            if status in statuses:
                return status.lower()
        return "no worker"

    @property
    def answers_are_current(self) -> bool:
        return self.was_ready or not any(worker.is_stale for worker in self.workers)

    def failure(self, now: float) -> str | None:
        """Describe why waiting is in vain, or return None."""
        if any(worker.is_ready for worker in self.current):
            return None
        for name, starts in self.failed_starts.items():
            if starts >= MAX_FAILED_STARTS:
                return f"{name} started {starts} times in vain"
        for worker_id, since in self._unhealthy_since.items():
            if now - since >= UNHEALTHY_SECONDS:
                return f"worker {worker_id} fails its health checks since {now - since:.0f} s"
        return None

    def durations(self, end: float) -> str:
        ends = [start for _, start in self.stages[1:]] + [end]
        return ", ".join(
            f"{stage} {stage_end - start:.0f} s"
            for (stage, start), stage_end in zip(self.stages, ends, strict=True)
        )


def has_started_in_vain(before: Worker, after: Worker | None) -> bool:
    """Whether the start that `before` shows has ended without a ready worker.

    RunPod does not say when it restarts a container: `startedAt` is taken to show it.
    """
    if before.started_at is None or before.is_ready or before.is_stale:
        return False
    return after is None or after.started_at != before.started_at


def wait_for_worker(
    runpod: RunPod, endpoint_id: str, probe: Probe, history: History, seconds: float
) -> float:
    """Print the states of the workers as they change, until one answers. Return the seconds.

    Raises:
        WorkerFailedError: a worker cannot start.
        NotReadyError: none answers within `seconds`.
        DeployError: RunPod or the endpoint refuses.
    """
    with tqdm(total=seconds, bar_format=WAITING, disable=None, leave=False) as bar:
        return _poll(runpod, endpoint_id, probe, history, seconds, bar)


def _poll(
    runpod: RunPod,
    endpoint_id: str,
    probe: Probe,
    history: History,
    seconds: float,
    bar: tqdm[Any],
) -> float:
    start = time.monotonic()
    problem = ""
    while True:
        answered = probe.answers()
        try:
            workers, unavailable = runpod.workers(endpoint_id, history.after_version), ""
        except UnavailableError as error:
            workers, unavailable = [*history.workers], str(error)
        now = time.monotonic() - start
        for line in history.update(workers, now):
            show(now, line)
        bar.set_description_str(history.stage, refresh=False)
        bar.update(now - bar.n)
        if unavailable and unavailable != problem:
            show(now, unavailable)
        problem = unavailable
        if answered and history.answers_are_current:
            show(now, "a worker answers")
            return now
        if reason := history.failure(now):
            raise WorkerFailedError(f"{reason}: the image does not start on RunPod")
        if now >= seconds:
            raise NotReadyError(not_ready(history, seconds))
        time.sleep(min(POLL_SECONDS, max(seconds - now, 0)))


def not_ready(history: History, seconds: float) -> str:
    message = f"no worker is ready after {seconds:.0f} s ({history.stage})"
    if history.stage == "throttled":
        return f"{message}: RunPod has no free GPU of `gpu.pools`; add a pool, or wait longer"
    return f"{message}: RunPod calls a start over 7 minutes unhealthy"


def show(seconds: float, line: str) -> None:
    with tqdm.external_write_mode():
        print(f"{seconds:6.0f} s  {line}", flush=True)


def failure_report(runpod: RunPod, endpoint_id: str, workers: Sequence[Worker]) -> Iterator[str]:
    """Yield the last release, and the end of the log of a worker that is not ready."""
    try:
        yield from release_lines(runpod.releases(endpoint_id))
        starting = [worker for worker in workers if not worker.is_ready and not worker.is_stale]
        starting.sort(key=lambda worker: worker.status != "UNHEALTHY")
        for worker in starting[:1]:
            log = runpod.worker_log(endpoint_id, worker.id)
            yield f"log of worker {worker.id}:" + ("" if log else " empty")
            yield from (f"    {line}" for line in log)
    except DeployError as error:  # of less interest than what is reported
        yield str(error)


def release_lines(releases: dict[str, object]) -> Iterator[str]:
    """Describe the last release. Values of its fields may be secrets, and are left out."""
    items, rollout = releases.get("releases"), releases.get("rollout")
    if isinstance(items, list) and items and isinstance(items[0], dict):
        diff = items[0].get("diff")
        entries = diff if isinstance(diff, list) else []
        names = [str(entry.get("field")) for entry in entries if isinstance(entry, dict)]
        fields = ", ".join(names) or "no field"
        version, created = items[0].get("version"), items[0].get("createdAt")
        yield f"release {version} of {created} changed {fields}"
    if isinstance(rollout, dict):
        latest, total = rollout.get("workersOnLatest"), rollout.get("workersTotal")
        yield f"rollout: {latest} of {total} workers run the last release"
