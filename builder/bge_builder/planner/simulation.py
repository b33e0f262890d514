"""A discrete-event simulation of an endpoint: a queue, a scaler, and workers that start and stop.

What is known of RunPod is in `docs/costs.md`, with what is assumed of it:

- The first worker starts as soon as a request waits and there is none. QUEUE_DELAY starts another
  one whenever the oldest request has waited for `scaler_value` seconds and the last start is as
  long ago, up to one for each unfinished request. REQUEST_COUNT has one for every `scaler_value`
  requests waiting or in flight.
- A request goes to a random worker with a free slot.
- A worker without a request for `idle_timeout` seconds stops, unless `min_workers` would be left.
- After three days without a request there are two workers at most.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass
from itertools import count
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .arrivals import DAY, Array, Arrivals
from .cards import Speed
from .scenario import Endpoint
from .worker import Job, Life, Worker

Event = Literal["ready", "batch", "idle", "scale"]
QUIET_SECONDS = 3 * DAY  # after which RunPod lowers max workers to QUIET_WORKERS
QUIET_WORKERS = 2
NORMAL_P95 = NormalDist().inv_cdf(0.95)


@dataclass(frozen=True)
class Outcome:
    """By request, in the order of arrival: seconds until its reply, seconds in the queue, and
    whether it was taken by a worker that was not ready when it arrived."""

    latencies: Array
    waits: Array
    met_cold_start: NDArray[np.bool_]
    lives: list[Life]


def simulate(
    arrivals: Arrivals, endpoint: Endpoint, speed: Speed, *, seconds: float, seed: int = 0
) -> Outcome:
    """Simulate `seconds`, which `min_workers` are paid for, or longer: until the last reply."""
    return _Simulation(arrivals, endpoint, speed, seed).run(seconds)


class _Simulation:
    def __init__(self, arrivals: Arrivals, endpoint: Endpoint, speed: Speed, seed: int) -> None:
        self._times: list[float] = arrivals.times.tolist()
        self._tokens: list[float] = arrivals.tokens.tolist()
        self._endpoint, self._speed = endpoint, speed
        self._max_workers = endpoint.max_workers
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, Event, Worker | None]] = []
        self._numbers = count()
        self._queue: deque[int] = deque()
        self._workers: list[Worker] = []
        self._lives: list[Life] = []
        self._in_flight = 0
        self._last_start = -math.inf
        self._next_look = math.inf  # of the queue-delay scaler
        self._taken, self._done = np.zeros(len(arrivals)), np.zeros(len(arrivals))
        self._cold = np.zeros(len(arrivals), bool)

    def run(self, seconds: float) -> Outcome:
        for _ in range(self._endpoint.min_workers):
            self._start_worker(0.0, ready=0.0)
        now, before = 0.0, 0.0
        for request, time in enumerate(self._times):
            while self._events and self._events[0][0] <= time:
                self._handle()
            if time - before >= QUIET_SECONDS:
                self._max_workers = min(self._max_workers, QUIET_WORKERS)
            before = time
            self._queue.append(request)
            self._dispatch(time)
        while self._events:
            now = self._handle()
        for worker in list(self._workers):
            self._stop(worker, max(now, seconds))
        times = np.array(self._times)
        latencies = self._done - times + self._endpoint.request_overhead
        return Outcome(latencies, self._taken - times, self._cold, self._lives)

    def _push(self, time: float, event: Event, worker: Worker | None = None) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), event, worker))

    def _handle(self) -> float:
        now, _, event, worker = heapq.heappop(self._events)
        if worker is None:
            if now >= self._next_look:
                self._next_look = math.inf
                self._scale(now)
        elif event == "ready":
            worker.is_ready = True
            self._set_idle(worker, now)
            self._dispatch(now)
        elif event == "batch":
            self._end_batch(worker, now)
        elif not worker.jobs and worker.idle_since + self._endpoint.idle_timeout <= now:
            self._stop_idle(worker, now)
        return now

    # ---------------------------------------------------------------------------- requests

    def _dispatch(self, now: float) -> None:
        """Give waiting requests to workers with free slots, then look whether one must start."""
        while self._queue:
            free = [worker for worker in self._workers if worker.has_slot]
            if not free:
                break
            worker = free[0] if len(free) == 1 else self._random.choice(free)
            self._take(worker, self._queue.popleft(), now)
        for worker in self._workers:
            if worker.jobs and not worker.is_computing:
                self._begin_batch(worker, now)
        self._scale(now)

    def _take(self, worker: Worker, request: int, now: float) -> None:
        self._taken[request] = now
        self._cold[request] = worker.ready > self._times[request]
        worker.jobs.append(Job(request, self._tokens[request]))
        self._in_flight += 1

    def _begin_batch(self, worker: Worker, now: float) -> None:
        seconds = worker.begin_batch(self._speed, self._endpoint.max_batch_tokens)
        self._push(now + seconds, "batch", worker)

    def _end_batch(self, worker: Worker, now: float) -> None:
        finished = worker.end_batch()
        for request in finished:
            self._done[request] = now
        self._in_flight -= len(finished)
        if finished and self._queue:
            self._dispatch(now)
        elif worker.jobs:
            self._begin_batch(worker, now)
        if not worker.jobs:
            self._set_idle(worker, now)

    # ----------------------------------------------------------------------------- workers

    def _scale(self, now: float) -> None:
        endpoint = self._endpoint
        unfinished = len(self._queue) + self._in_flight
        if endpoint.scaler == "REQUEST_COUNT":
            needed = math.ceil(unfinished / endpoint.scaler_value)
            for _ in range(min(needed, self._max_workers) - len(self._workers)):
                self._start_worker(now)
            return
        if not self._queue or len(self._workers) >= min(self._max_workers, unfinished):
            return
        oldest = self._times[self._queue[0]]
        due = max(oldest, self._last_start) + endpoint.scaler_value
        if not self._workers or due <= now:
            self._start_worker(now)
            due = now + endpoint.scaler_value
        if self._next_look > due:
            self._next_look = due
            self._push(due, "scale")

    def _start_worker(self, now: float, ready: float | None = None) -> None:
        if ready is None:
            ready = now + self._start_seconds()
        worker = Worker(now, ready, self._endpoint.concurrency)
        self._workers.append(worker)
        self._last_start = now
        self._push(ready, "ready", worker)

    def _start_seconds(self) -> float:
        median, p95 = self._endpoint.cold_start, self._endpoint.cold_start_p95
        spread = math.log(p95 / median) / NORMAL_P95
        return median * math.exp(spread * self._random.gauss(0, 1))

    def _set_idle(self, worker: Worker, now: float) -> None:
        worker.idle_since = now
        self._push(now + self._endpoint.idle_timeout, "idle", worker)

    def _stop_idle(self, worker: Worker, now: float) -> None:
        """Stop it, unless too few would be left that are ready."""
        ready = sum(candidate.is_ready for candidate in self._workers)
        if worker in self._workers and ready > self._endpoint.min_workers:
            self._stop(worker, now + self._endpoint.stop_seconds)

    def _stop(self, worker: Worker, stopped: float) -> None:
        self._workers.remove(worker)
        self._lives.append(Life(worker.started, worker.ready, stopped, worker.work))
