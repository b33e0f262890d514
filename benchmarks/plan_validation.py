"""`bge plan` beside real workers: `make bench-plan`.

RunPod's worker loop runs in real processes of `worker/handler.py` under a fake job server. A scaler
starts and stops them by the rules that the simulation assumes of RunPod. Their engine sleeps for
the time that a stated rate gives, since two cores cannot time several real ones. Both get the same
arrivals. What the simulation takes from a measurement is that of one worker alone: seconds of a
start, of a stop, and of a request outside the engine.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bge_builder.planner.arrivals import Arrivals
from bge_builder.planner.cards import Speed
from bge_builder.planner.scenario import Endpoint
from bge_builder.planner.simulation import simulate
from fakes.runpod_server import JobServer
from fakes.worker_process import WorkerProcess
from results import FOLDER, with_date
from workload import ROOT

FILE = FOLDER / "plan" / "validation.json"
SCRIPT = ROOT / "tests" / "fakes" / "paced_worker.py"
SPEED = Speed(tokens_per_second=1000, batch_seconds=0.02, request_seconds=0)
# Compressed in time: RunPod's defaults are 5 s idle and 4 s of queue delay.
ENDPOINT = Endpoint(idle_timeout=3, scaler_value=2, concurrency=4, max_batch_tokens=500)
LOAD_SECONDS = 6.0  # until the models are loaded: longer than any start takes by itself
LOOK_SECONDS = 0.02
TEXT_TOKENS = 50  # of a document at most
LONE_REQUESTS = 10
SEEDS = 5


class TimedJobServer(JobServer):
    """A job server that records when jobs are submitted, taken and answered."""

    def __init__(self) -> None:
        super().__init__(poll_seconds=0.5)
        self.waiting: OrderedDict[str, float] = OrderedDict()
        self.finished: dict[str, float] = {}
        self.in_flight: dict[str, int] = {}
        self.last_change: dict[str, float] = {}

    def submit(self, job_input: Any) -> str:
        with self._condition:
            job_id = super().submit(job_input)
            self.waiting[job_id] = time.monotonic()
            return job_id

    def take(self, worker: str, limit: int, is_gone: Callable[[], bool]) -> list[dict[str, Any]]:
        jobs = super().take(worker, limit, is_gone)
        with self._condition:
            for job in jobs:
                del self.waiting[job["id"]]
            self._count(worker, len(jobs))
            return jobs

    def answer(self, worker: str, job_id: str, raw: bytes) -> None:
        with self._condition:
            super().answer(worker, job_id, raw)
            self.finished[job_id] = time.monotonic()
            self._count(worker, -1)

    def _count(self, worker: str, change: int) -> None:
        self.in_flight[worker] = self.in_flight.get(worker, 0) + change
        if change or worker not in self.last_change:
            self.last_change[worker] = time.monotonic()


@dataclass
class LiveWorker:
    process: WorkerProcess
    started: float = field(default_factory=time.monotonic)
    stopping: float = math.inf
    stopped: float = math.inf


class Pool:
    """Starts and stops worker processes by the rules of `bge_builder.planner.simulation`."""

    def __init__(self, server: TimedJobServer, endpoint: Endpoint) -> None:
        self._server, self._endpoint = server, endpoint
        self._last_start = -math.inf
        self.live: list[LiveWorker] = []
        self.stopped: list[LiveWorker] = []

    def look(self, now: float) -> None:
        with self._server._condition:
            oldest = next(iter(self._server.waiting.values()), None)
            unfinished = len(self._server.waiting) + sum(self._server.in_flight.values())
        active = [worker for worker in self.live if worker.stopping == math.inf]
        for worker in active:
            if self._is_idle(worker, now):
                worker.stopping = now
                worker.process.terminate()
        for worker in [w for w in self.live if w.process._process.poll() is not None]:
            worker.stopped = time.monotonic()
            worker.process.__exit__()
            self.live.remove(worker)
            self.stopped.append(worker)
        if oldest is None or len(active) >= min(self._endpoint.max_workers, unfinished):
            return
        due = max(oldest, self._last_start) + self._endpoint.scaler_value
        if not active or due <= now:
            self.start()

    def start(self) -> LiveWorker:
        env = {
            "PACED_TOKENS_PER_SECOND": str(SPEED.tokens_per_second),
            "PACED_BATCH_SECONDS": str(SPEED.batch_seconds),
            "PACED_READY_AT": str(time.time() + LOAD_SECONDS),
            "BGE_CONCURRENCY": str(self._endpoint.concurrency),
            "BGE_MAX_BATCH_TOKENS": str(self._endpoint.max_batch_tokens),
        }
        worker = LiveWorker(WorkerProcess(SCRIPT, self._server, env))
        worker.process.__enter__()
        self._last_start = worker.started
        self.live.append(worker)
        return worker

    def kill(self) -> None:
        for worker in self.live:
            worker.process.__exit__()

    def _is_idle(self, worker: LiveWorker, now: float) -> bool:
        name = worker.process.name
        with self._server._condition:
            if self._server.in_flight.get(name) != 0:
                ready = name in self._server.workers
                if not ready or name in self._server.in_flight:
                    return False
                self._server._count(name, 0)
            return now - self._server.last_change[name] >= self._endpoint.idle_timeout


def payload(tokens: int) -> dict[str, Any]:
    """Return a request of that many tokens, in documents of TEXT_TOKENS."""
    whole, rest = divmod(tokens, TEXT_TOKENS)
    return {"query": "q", "documents": ["x" * TEXT_TOKENS] * whole + ["x" * rest] * (rest > 0)}


def measure(arrivals: Arrivals, endpoint: Endpoint) -> dict[str, float]:
    """Send the requests to real workers. Returns seconds: percentiles, and what is paid."""
    with TimedJobServer() as server:
        pool = Pool(server, endpoint)
        try:
            jobs = run(arrivals, server, pool)
        finally:
            pool.kill()
        for job, _ in jobs:
            assert "error" not in server.results[job][0].body, server.results[job][0].body
        assert not server.violations, server.violations
    latencies = [server.finished[job] - submitted for job, submitted in jobs]
    paid = sum(math.ceil(worker.stopped - worker.started) for worker in pool.stopped)
    return summary(latencies, paid)


def run(arrivals: Arrivals, server: TimedJobServer, pool: Pool) -> list[tuple[str, float]]:
    """Return the jobs and when they were to arrive, after the last worker has stopped."""
    begin = time.monotonic()
    jobs: list[tuple[str, float]] = []
    pending = list(zip(arrivals.times.tolist(), arrivals.tokens.tolist(), strict=True))[::-1]
    while pending or pool.live or len(server.finished) < len(arrivals):
        now = time.monotonic()
        while pending and begin + pending[-1][0] <= now:
            moment, tokens = pending.pop()
            jobs.append((server.submit(payload(int(tokens))), begin + moment))
        pool.look(now)
        time.sleep(LOOK_SECONDS)
    return jobs


def summary(latencies: Sequence[float], paid: float) -> dict[str, float]:
    p50, p99 = np.percentile(latencies, (50, 99))
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3), "paid": paid}


def calibrate() -> dict[str, float]:
    """Start one worker, send it lone requests, stop it."""
    with TimedJobServer() as server:
        pool = Pool(server, ENDPOINT)
        worker = pool.start()
        try:
            worker.process.wait_ready(60)
            ready = time.monotonic()
            outside = []
            for _ in range(LONE_REQUESTS):
                submitted = time.monotonic()
                job = server.submit(payload(TEXT_TOKENS))
                server.result(job)
                outside.append(server.finished[job] - submitted)
            stopping = time.monotonic()
            worker.process.terminate()
            worker.process.wait()
            stopped = time.monotonic()
        finally:
            pool.kill()
    engine = SPEED.batch_seconds + TEXT_TOKENS / SPEED.tokens_per_second
    return {
        "cold_start": round(ready - worker.started, 3),
        "stop_seconds": round(stopped - stopping, 3),
        "request_overhead": round(statistics.median(outside) - engine, 4),
    }


def shapes() -> dict[str, Arrivals]:
    rng = np.random.default_rng(24)
    steady = rng.uniform(0, 40, 160)
    sparse = np.cumsum(rng.exponential(6, 9))
    bursts = np.concatenate([begin + rng.uniform(0, 1, 40) for begin in (0, 22)])
    bulk = np.zeros(50)
    queries = np.sort(rng.uniform(0, 20, 20))
    return {
        "steady: 4 a second": requests(steady, rng.uniform(50, 150, 160)),
        "sparse: one in 6 s": requests(sparse, rng.uniform(50, 150, 9)),
        "bursts: 40 within a second": requests(bursts, rng.uniform(100, 300, 80)),
        "bulk: 50 at once, and queries": requests(
            np.concatenate([bulk, queries]), np.concatenate([np.full(50, 500), np.full(20, 50)])
        ),
    }


def requests(times: Any, tokens: Any) -> Arrivals:
    order = np.argsort(times, kind="stable")
    tokens = np.floor(tokens[order])
    return Arrivals(times[order], tokens, np.ones(len(order), bool))


def predict(arrivals: Arrivals, endpoint: Endpoint, seed: int) -> dict[str, float]:
    outcome = simulate(arrivals, endpoint, SPEED, seconds=0, seed=seed)
    return summary(outcome.latencies.tolist(), sum(life.paid for life in outcome.lives))


def calibrated(content: dict[str, Any]) -> Endpoint:
    values = {name: content["calibration"][name] for name in ("stop_seconds", "request_overhead")}
    start = content["calibration"]["cold_start"]
    return msgspec.structs.replace(ENDPOINT, cold_start=start, cold_start_p95=start, **values)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--add", choices=[name.split(":")[0] for name in shapes()], help="runs of one shape"
    )
    args = parser.parse_args()
    if not args.add:
        save(FILE, {"calibration": with_date(calibrate()), "shapes": {}})
    for name, arrivals in shapes().items():
        if args.add in (None, name.split(":")[0]):
            endpoint = calibrated(read())
            measured = [measure(arrivals, endpoint) for _ in range(args.repeats)]
            simulated = [predict(arrivals, endpoint, seed) for seed in range(SEEDS)]
            content = read()
            before = content["shapes"].get(name, {}).get("measured", [])
            entry = {"simulated": simulated, "measured": [*before, *measured]}
            content["shapes"][name] = {"requests": len(arrivals), **entry}
            save(FILE, content)
            print(name, json.dumps(content["shapes"][name]), flush=True)


def read() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text("utf-8")))


def save(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
