"""A simulated worker: jobs in its slots, micro-batches cut from them, its life as it is billed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from .cards import Speed

# As in the worker's batcher: beside longer requests, those that fill at most this part of a
# micro-batch have every other one to themselves.
SHORT_FRACTION = 1 / 8


@dataclass(frozen=True)
class Life:
    """Seconds since the first midnight, and seconds of work. Every second from `started` to
    `stopped` is paid, rounded up."""

    started: float
    ready: float
    stopped: float
    work: float

    @property
    def paid(self) -> int:
        return math.ceil(self.stopped - self.started)

    @property
    def start(self) -> float:
        return self.ready - self.started

    @property
    def idle(self) -> float:
        return self.paid - self.start - self.work


@dataclass(slots=True)
class Job:
    """A request in a slot. `share` of its tokens are in the running micro-batch."""

    request: int
    tokens_left: float
    share: float = 0.0
    has_begun: bool = False


@dataclass(slots=True, eq=False)
class Worker:
    started: float
    ready: float
    slots: int
    jobs: list[Job] = field(default_factory=list)
    is_ready: bool = False
    is_computing: bool = False
    work: float = 0.0
    idle_since: float = 0.0
    short_turn: bool = False

    @property
    def has_slot(self) -> bool:
        return self.is_ready and len(self.jobs) < self.slots

    def begin_batch(self, speed: Speed, budget: int) -> float:
        """Cut a micro-batch of at most `budget` tokens from the jobs; return its seconds."""
        jobs = self._jobs_of_turn(budget * SHORT_FRACTION)
        cut(jobs, budget)
        tokens, new_requests = 0.0, 0
        for job in jobs:
            tokens += job.share
            if not job.has_begun:
                new_requests += 1
                job.has_begun = True
        seconds = (
            speed.batch_seconds
            + speed.request_seconds * new_requests
            + tokens / speed.tokens_per_second
        )
        self.is_computing = True
        self.work += seconds
        return seconds

    def end_batch(self) -> list[int]:
        """Remove and return the requests that are finished."""
        self.is_computing = False
        finished = []
        for job in self.jobs:
            job.tokens_left -= job.share
            job.share = 0.0
            if job.tokens_left <= 1e-6:
                finished.append(job.request)
        if finished:
            self.jobs = [job for job in self.jobs if job.tokens_left > 1e-6]
        return finished

    def _jobs_of_turn(self, short_tokens: float) -> list[Job]:
        jobs = self.jobs
        if len(jobs) == 1:
            self.short_turn = False
            return jobs
        short = [job for job in jobs if job.tokens_left <= short_tokens]
        self.short_turn = not self.short_turn and 0 < len(short) < len(jobs)
        return short if self.short_turn else jobs


def cut(jobs: Sequence[Job], budget: float) -> None:
    """Share a micro-batch's tokens equally. What a job does not need goes to the others."""
    least = min(job.tokens_left for job in jobs)
    equal = budget / len(jobs)
    if least >= equal:
        for job in jobs:
            job.share = equal
        return
    if sum(job.tokens_left for job in jobs) <= budget:
        for job in jobs:
            job.share = job.tokens_left
        return
    left, count = budget, len(jobs)
    for job in sorted(jobs, key=lambda job: job.tokens_left):
        job.share = min(job.tokens_left, left / count)
        left -= job.share
        count -= 1
