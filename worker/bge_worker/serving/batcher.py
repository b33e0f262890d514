"""Requests → results: the queue, the tokenising thread and the inference thread.

    submit ─▶ arrived ─▶ [tokenising thread] ─▶ ready ─▶ [inference thread] ─▶ future

Both threads serve requests in turn, a bounded amount at a time: a slice of texts is tokenised, a
micro-batch of tokens is computed. A request is ready as soon as its first slice is. There is no
timer: requests gather while the device works, and the next micro-batch is cut from what is ready
when it is free. While it computes that one, the host turns the results of the one before into
vectors. A query sent during a request of 10,000 texts waits for the micro-batch on the device; the
next one holds short requests alone, and the one after that is the long request's again.

Every future is resolved: with a result, with a WorkerError, or as cancelled.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter

from ..engine.engine import Engine
from ..engine.outputs import Result
from ..engine.packing import round_robin
from ..engine.pipeline import Pipeline
from ..engine.texts import MIN_TEXT_LENGTH
from ..engine.tokenizer import Encoded
from ..errors import OverloadedError, WorkerError, logged_inference_error
from .limits import Limits
from .requests import EmbedRequest, InferenceRequest, RerankRequest

# Characters tokenised before the next request's turn: some tens of milliseconds. A longer text
# cannot be split, and a longer query is tokenised with every slice of its documents.
SLICE_CHARACTERS = 16384
# A request is short if its remaining texts fill at most this part of a micro-batch.
SHORT_FRACTION = 1 / 8


@dataclass(frozen=True)
class Timings:
    """Milliseconds: waiting, tokenising until the first micro-batch, and from that to the last."""

    queue: float
    tokenize: float
    inference: float


@dataclass(frozen=True)
class Finished:
    """A request's encoded texts and their results, both in the order of its texts."""

    encoded: Sequence[Encoded]
    results: Sequence[Result]
    timings: Timings


@dataclass(eq=False)
class _Job:
    """A request and its progress."""

    request: InferenceRequest
    future: Future[Finished] = field(default_factory=Future)
    encoded: list[Encoded] = field(default_factory=list)
    results: dict[int, Result] = field(default_factory=dict)
    next_index: int = 0  # of the first text that is in no micro-batch yet
    submitted: float = field(default_factory=perf_counter)
    tokenize_seconds: float = 0.0
    queue_seconds: float = 0.0
    started: float = 0.0
    is_ready: bool = False  # in `_ready`

    @property
    def is_over(self) -> bool:
        """Cancelled or failed: its remaining texts are not computed."""
        return self.future.done()

    def waiting_lengths(self) -> Iterator[int]:
        """Token counts of the tokenised texts that are in no micro-batch yet."""
        return (len(self.encoded[i].ids) for i in range(self.next_index, len(self.encoded)))

    def is_short(self, tokens: int) -> bool:
        """Whether all its remaining texts are tokenised and have at most `tokens` tokens."""
        remaining = len(self.request.texts) - self.next_index
        if len(self.encoded) < len(self.request.texts) or remaining * MIN_TEXT_LENGTH > tokens:
            return False
        return sum(self.waiting_lengths()) <= tokens

    def add_result(self, index: int, result: Result) -> None:
        self.results[index] = result
        if len(self.results) == len(self.request.texts):
            self._resolve()

    def start(self) -> None:
        """Its first micro-batch begins."""
        if not self.started:
            tokenize_seconds = self.tokenize_seconds
            self.started = perf_counter()
            self.queue_seconds = self.started - self.submitted - tokenize_seconds

    def fail(self, error: WorkerError) -> None:
        with suppress(InvalidStateError):  # cancelled or failed already
            self.future.set_exception(error)

    def _resolve(self) -> None:
        inference_seconds = perf_counter() - self.started
        seconds = (self.queue_seconds, self.tokenize_seconds, inference_seconds)
        timings = Timings(*(1e3 * value for value in seconds))
        results = [self.results[index] for index in range(len(self.encoded))]
        with suppress(InvalidStateError):  # cancelled meanwhile
            self.future.set_result(Finished(self.encoded, results, timings))


@dataclass(frozen=True)
class _BatchItem:
    """One text of a micro-batch: `job.encoded[index]`."""

    job: _Job
    index: int

    @property
    def text(self) -> Encoded:
        return self.job.encoded[self.index]

    @property
    def position(self) -> tuple[str, int]:
        request = self.job.request
        windows = request.windows if isinstance(request, RerankRequest) else None
        return request.field, self.index if windows is None else windows.owners[self.index]

    @property
    def is_over(self) -> bool:
        return self.job.is_over

    def add_result(self, result: Result) -> None:
        self.job.add_result(self.index, result)

    def fail(self, error: WorkerError) -> None:
        self.job.fail(error)


class Batcher:
    """Owns the queue and both threads. `submit` may be called from any thread."""

    def __init__(self, engine: Engine, limits: Limits, max_queue: int) -> None:
        """`limits` are checked after each slice of a request."""
        self._engine = engine
        self._pipeline = Pipeline(engine)
        self.counts = self._pipeline.counts
        self._limits = limits
        self._max_queue = max_queue
        self._budget = engine.runtime.max_batch_tokens
        self._arrived: deque[_Job] = deque()
        self._ready: deque[_Job] = deque()
        self._open: set[_Job] = set()
        self._changed = threading.Condition()
        self._short_turn = False  # the micro-batch on the device holds short requests alone
        self._stopping = False
        self._refusal = "this worker is stopping"
        self._threads = [
            threading.Thread(target=self._loop, args=(step,), name=name, daemon=True)
            for name, step in (("tokenize", self._tokenize_next), ("infer", self._infer_next))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def healthy(self) -> bool:
        """Whether both threads are alive and not stopping."""
        return not self._stopping and all(thread.is_alive() for thread in self._threads)

    @property
    def depth(self) -> int:
        """Requests not answered yet."""
        return len(self._open)

    def submit(self, request: InferenceRequest) -> Future[Finished]:
        """Queue a request. Cancel the future to take it out of the queue.

        Raises OverloadedError: `max_queue` requests are waiting, or the worker is stopping.
        """
        job = _Job(request)
        with self._changed:
            if self._stopping:
                raise OverloadedError(self._refusal)
            if len(self._open) >= self._max_queue:
                raise OverloadedError(f"{len(self._open)} requests are waiting; try again later")
            self._open.add(job)
            self._arrived.append(job)
            self._changed.notify_all()
        job.future.add_done_callback(lambda _: self._remove(job))
        return job.future

    def close(self, timeout: float | None = None) -> None:
        """Accept no more requests, finish those in the queue, end the threads.

        Requests not finished within `timeout` seconds fail with OverloadedError.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        deadline = None if timeout is None else perf_counter() + timeout
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - perf_counter()))
        self._fail_all(OverloadedError(self._refusal))

    def _remove(self, job: _Job) -> None:
        """Called when a job's future is done, also by cancellation."""
        with self._changed:
            self._open.discard(job)
            self._changed.notify_all()

    def _fail_all(self, error: WorkerError) -> None:
        with self._changed:
            jobs = list(self._open)
        for job in jobs:
            job.fail(error)

    def _loop(self, step: Callable[[], bool]) -> None:
        """Run `step` until it returns False. If it raises, fail all requests."""
        try:
            while step():
                pass
        except BaseException as error:
            self._stopping, self._refusal = True, "this worker has failed and must be replaced"
            self._fail_all(logged_inference_error(error))
            raise

    # ---------------------------------------------------------------- tokenising thread

    def _tokenize_next(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._arrived or self._drained())
            if not self._arrived:
                return False
            job = self._arrived.popleft()
        if not job.is_over:
            self._tokenize_slice(job)
        return True

    def _tokenize_slice(self, job: _Job) -> None:
        began = perf_counter()
        start = len(job.encoded)
        end = slice_end(job.request, start)
        try:
            encoded = self._encode(job.request, start, end)
            self._limits.check(job.request, job.encoded + encoded)
        except WorkerError as error:
            job.fail(error)
            return
        except BaseException as error:  # a panic of the Rust tokenizer is no Exception
            job.fail(logged_inference_error(error))
            return
        finally:
            if not job.started:  # else it overlaps with inference
                job.tokenize_seconds += perf_counter() - began
        with self._changed:
            job.encoded += encoded
            if end < len(job.request.texts):
                self._arrived.append(job)
            if not job.is_ready:
                job.is_ready = True
                self._ready.append(job)
            self._changed.notify_all()

    def _encode(self, request: InferenceRequest, start: int, end: int) -> list[Encoded]:
        if isinstance(request, EmbedRequest):
            return self._engine.encode_texts(request.texts[start:end], request.max_length)
        queries = request.queries if len(request.queries) == 1 else request.queries[start:end]
        return self._engine.encode_pairs(queries, request.texts[start:end], request.max_length)

    # ----------------------------------------------------------------- inference thread

    def _infer_next(self) -> bool:
        with self._changed:
            pipeline = self._pipeline
            self._changed.wait_for(lambda: self._ready or pipeline.is_pending or self._drained())
            if not self._ready and not pipeline.is_pending:
                return False
            items = self._next_batch()
        if items:
            pipeline.run(items[0].job.request.outputs, items)
        else:
            pipeline.finish()
        return True

    def _drained(self) -> bool:
        """Stopping, with no request left that could bring work to either thread."""
        return self._stopping and not self._open

    def _next_batch(self) -> list[_BatchItem]:
        """Cut the next micro-batch: texts of requests with equal outputs, in turn, within budget.

        Beside longer requests, short ones have every other micro-batch to themselves: in a shared
        one they would take as long as the longer ones. Requests that got texts in go behind those
        that did not.
        """
        self._ready = deque(job for job in self._ready if not job.is_over)
        if not self._ready:
            return []
        outputs = self._ready[0].request.outputs
        jobs = [job for job in self._ready if job.request.outputs == outputs]
        short = [job for job in jobs if job.is_short(int(self._budget * SHORT_FRACTION))]
        self._short_turn = not self._short_turn and 0 < len(short) < len(jobs)
        if self._short_turn:
            jobs = short
        counts = round_robin([job.waiting_lengths() for job in jobs], self._budget)
        items: list[_BatchItem] = []
        served: dict[_Job, None] = {}  # in order
        for job, count in zip(jobs, counts, strict=True):
            if count:
                served[job] = None
                job.start()
                start, job.next_index = job.next_index, job.next_index + count
                items += [_BatchItem(job, index) for index in range(start, job.next_index)]
        unserved = [job for job in self._ready if job not in served]
        unfinished = []
        for job in served:
            job.is_ready = job.next_index < len(job.encoded)
            if job.is_ready:
                unfinished.append(job)
        self._ready = deque(unserved + unfinished)
        return items


def slice_end(request: InferenceRequest, start: int) -> int:
    """Return where the next slice to tokenise ends: at least one text, then by characters."""
    end, characters = start, 0
    max_characters = SLICE_CHARACTERS
    if isinstance(request, RerankRequest):
        # Or tokenising the query again would take most of the slice.
        max_characters = max(max_characters, len(request.queries[0]))
    while end < len(request.texts) and characters < max_characters:
        characters += len(request.texts[end])
        if isinstance(request, RerankRequest) and len(request.queries) > 1:
            characters += len(request.queries[end])
        end += 1
    return end
