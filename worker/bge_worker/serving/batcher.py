"""Requests in, results out: the queue, the tokenising thread and the one inference thread.

    submit ─▶ arrived ─▶ [tokenising thread] ─▶ ready ─▶ [inference thread] ─▶ future

Both threads serve requests in turn, a bounded piece at a time: a slice of texts is tokenised, a
micro-batch of tokens is run. There is no timer: while the device works, requests gather; when it
is free, the next micro-batch is cut from what is there. So one query sent during a job of 10,000
texts waits for the micro-batch on the device; the next is that of short requests alone, and then
it is the long one's turn again.

Every future is resolved, whatever happens: with a result, with a WorkerError, or as cancelled.
"""

from __future__ import annotations

import logging
import threading
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from ..engine.engine import Engine, Result
from ..engine.packing import round_robin
from ..engine.tokenizer import Encoded
from ..errors import InferenceError, OutOfMemoryError, OverloadedError, WorkerError
from .requests import Outputs, RerankRequest, Work

log = logging.getLogger(__name__)

# Characters tokenised before it is the next request's turn: some tens of milliseconds. A longer
# text cannot be cut, and a longer query comes with every slice of its documents.
SLICE_CHARACTERS = 16384
# A request is short if what is left of it fills no more than this part of a micro-batch.
SHORT = 1 / 8
MIN_TOKENS = 3  # of a text: <s>, one, </s>

Admit = Callable[[Work, Sequence[Encoded]], None]


@dataclass(frozen=True)
class Timings:
    """Milliseconds: waiting, tokenising, and from the first micro-batch to the last."""

    queue: float
    tokenize: float
    inference: float


@dataclass(frozen=True)
class Finished:
    """A request's encoded texts and their results, both in the order of its texts."""

    encoded: Sequence[Encoded]
    results: Sequence[Result]
    timings: Timings


@dataclass
class Counts:
    """What the inference thread has done since the start."""

    batches: int = 0
    tokens: int = 0
    out_of_memory: int = 0
    seconds: float = 0.0  # on the device, of micro-batches that did not fail


@dataclass(eq=False)
class _Job:
    """One request on its way through."""

    work: Work
    future: Future[Finished] = field(default_factory=Future)
    encoded: list[Encoded] = field(default_factory=list)
    results: dict[int, Result] = field(default_factory=dict)
    taken: int = 0  # texts already given to a micro-batch
    submitted: float = field(default_factory=perf_counter)
    tokenizing: float = 0.0
    started: float = 0.0

    @property
    def over(self) -> bool:
        """Cancelled or failed: nothing more is to be done for it."""
        return self.future.done()

    def waiting_lengths(self) -> Iterator[int]:
        return (len(self.encoded[place].ids) for place in range(self.taken, len(self.encoded)))

    def is_short(self, tokens: int) -> bool:
        """Whether all that is left of it is known, and has at most so many tokens."""
        left = len(self.work.texts) - self.taken
        if len(self.encoded) < len(self.work.texts) or left * MIN_TOKENS > tokens:
            return False
        return sum(self.waiting_lengths()) <= tokens

    def deliver(self, place: int, result: Result) -> None:
        self.results[place] = result
        if len(self.results) == len(self.encoded):
            self._resolve()

    def fail(self, error: WorkerError) -> None:
        with suppress(InvalidStateError):  # cancelled, or failed already
            self.future.set_exception(error)

    def _resolve(self) -> None:
        ended = perf_counter()
        waited = self.started - self.submitted - self.tokenizing
        timings = Timings(waited * 1e3, self.tokenizing * 1e3, (ended - self.started) * 1e3)
        results = [self.results[place] for place in range(len(self.encoded))]
        with suppress(InvalidStateError):  # cancelled meanwhile
            self.future.set_result(Finished(self.encoded, results, timings))


@dataclass(frozen=True)
class _Piece:
    """One text of a micro-batch: whose, and where its result goes."""

    job: _Job
    place: int

    @property
    def text(self) -> Encoded:
        return self.job.encoded[self.place]


class Batcher:
    """Owns the queue and both threads; `submit` may be called from any thread."""

    def __init__(self, engine: Engine, admit: Admit, max_queue: int) -> None:
        """`admit` is asked after each slice of a request, and raises a WorkerError to refuse it."""
        self.counts = Counts()
        self._engine = engine
        self._admit = admit
        self._max_queue = max_queue
        self._budget = engine.runtime.max_batch_tokens
        self._arrived: deque[_Job] = deque()
        self._ready: deque[_Job] = deque()
        self._open: set[_Job] = set()
        self._changed = threading.Condition()
        self._short_turn = False  # the micro-batch on the device is of short requests alone
        self._stopping = False
        self._refusal = "this worker is stopping"
        self._threads = [
            threading.Thread(target=self._guarded, args=(step,), name=name, daemon=True)
            for name, step in (("tokenize", self._tokenize_next), ("infer", self._infer_next))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def healthy(self) -> bool:
        """Both threads are alive and nobody has asked them to stop."""
        return not self._stopping and all(thread.is_alive() for thread in self._threads)

    @property
    def depth(self) -> int:
        """Requests not yet answered."""
        return len(self._open)

    def submit(self, work: Work) -> Future[Finished]:
        """Queue a request. Cancel the future to give its place up.

        Raises:
            OverloadedError: `max_queue` requests are waiting already, or the worker is stopping.
        """
        job = _Job(work)
        with self._changed:
            if self._stopping:
                raise OverloadedError(self._refusal)
            if len(self._open) >= self._max_queue:
                raise OverloadedError(f"{len(self._open)} requests are waiting; try again later")
            self._open.add(job)
            self._arrived.append(job)
            self._changed.notify_all()
        job.future.add_done_callback(lambda _: self._close_job(job))
        return job.future

    def close(self, timeout: float | None = None) -> None:
        """Take nothing more, finish what is there, end the threads.

        What is not finished within `timeout` seconds fails with OverloadedError.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        ends = None if timeout is None else perf_counter() + timeout
        for thread in self._threads:
            thread.join(None if ends is None else max(0.0, ends - perf_counter()))
        self._fail_all(OverloadedError(self._refusal))

    def _close_job(self, job: _Job) -> None:
        """Called once a job's future is done, cancelled ones included: its place is free."""
        with self._changed:
            self._open.discard(job)
            self._changed.notify_all()

    def _fail_all(self, error: WorkerError) -> None:
        with self._changed:
            jobs = list(self._open)
        for job in jobs:
            job.fail(error)

    def _guarded(self, step: Callable[[], bool]) -> None:
        """Run `step` until it says there is no more; a thread that dies leaves nobody waiting."""
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
        if not job.over:
            self._tokenize_slice(job)
        return True

    def _tokenize_slice(self, job: _Job) -> None:
        began = perf_counter()
        start = len(job.encoded)
        end = slice_end(job.work, start)
        try:
            job.encoded += self._engine.encode(job.work, start, end)
            self._admit(job.work, job.encoded)
        except WorkerError as error:
            job.fail(error)
            return
        except BaseException as error:  # a panic of the Rust tokenizer is no Exception
            job.fail(logged_inference_error(error))
            return
        finally:
            job.tokenizing += perf_counter() - began
        with self._changed:
            (self._ready if end == len(job.work.texts) else self._arrived).append(job)
            self._changed.notify_all()

    # ----------------------------------------------------------------- inference thread

    def _infer_next(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._drained())
            if not self._ready:
                return False
            pieces = self._cut()
        if pieces:
            self._run(pieces[0].job.work.outputs, pieces)
        return True

    def _drained(self) -> bool:
        """Stopping, and no request is left that could still bring work to either thread."""
        return self._stopping and not self._open

    def _cut(self) -> list[_Piece]:
        """The next micro-batch: texts of like requests in turn, within the token budget.

        Beside longer ones, short requests have every other micro-batch to themselves: with texts
        of the others in it, theirs would take as long as those. Requests that got something go
        behind those that did not.
        """
        self._ready = deque(job for job in self._ready if not job.over)
        if not self._ready:
            return []
        outputs = self._ready[0].work.outputs
        like = [job for job in self._ready if job.work.outputs == outputs]
        short = [job for job in like if job.is_short(int(self._budget * SHORT))]
        self._short_turn = not self._short_turn and 0 < len(short) < len(like)
        if self._short_turn:
            like = short
        counts = round_robin([job.waiting_lengths() for job in like], self._budget)
        now = perf_counter()
        pieces: list[_Piece] = []
        for job, count in zip(like, counts, strict=True):
            if count:
                job.started = job.started or now
            pieces += [_Piece(job, place) for place in range(job.taken, job.taken + count)]
            job.taken += count
        served = {job: None for job, count in zip(like, counts, strict=True) if count}
        unserved = [job for job in self._ready if job not in served]
        unfinished = [job for job in served if job.taken < len(job.encoded)]
        self._ready = deque(unserved + unfinished)
        return pieces

    def _run(self, outputs: Outputs, pieces: list[_Piece]) -> None:
        """Run a micro-batch; if it fails, halve it until the text at fault stands alone."""
        pieces = [piece for piece in pieces if not piece.job.over]
        if not pieces:
            return
        tokens = sum(len(piece.text.ids) for piece in pieces)
        self.counts.batches += 1
        self.counts.tokens += tokens
        began = perf_counter()
        try:
            results = self._engine.run(outputs, [piece.text for piece in pieces])
        except BaseException as error:
            # Only the sentence outlives this block: the traceback holds the tensors of the
            # failed forward, and the halves need their memory.
            failure = None if len(pieces) > 1 else self._alone(pieces[0], error)
            self.counts.out_of_memory += isinstance(error, OutOfMemoryError)
            log.warning(
                "%s in a micro-batch of %d texts, %d tokens: %s",
                *(type(error).__name__, len(pieces), tokens),
                "halving it" if failure is None else "its request fails",
            )
        else:
            self.counts.seconds += perf_counter() - began
            for piece, result in zip(pieces, results, strict=True):
                piece.job.deliver(piece.place, result)
            return
        if failure is not None:
            pieces[0].job.fail(failure)
            return
        middle = len(pieces) // 2
        self._run(outputs, pieces[:middle])
        self._run(outputs, pieces[middle:])

    def _alone(self, piece: _Piece, error: BaseException) -> WorkerError:
        """What the caller hears when one text alone cannot be run."""
        if isinstance(error, OutOfMemoryError):
            where = f"`{piece.job.work.field}[{piece.place}]`"
            return OutOfMemoryError(
                f"{where} has {len(piece.text.ids)} tokens and does not fit the device on its own"
            )
        return logged_inference_error(error)


def slice_end(work: Work, start: int) -> int:
    """Where the next slice to tokenise ends: at least one text, then by characters."""
    end, characters = start, 0
    most = SLICE_CHARACTERS
    if isinstance(work, RerankRequest):
        most = max(most, len(work.query))  # or tokenising the query again would take most of it
    while end < len(work.texts) and characters < most:
        characters += len(work.texts[end])
        end += 1
    return end


def logged_inference_error(error: BaseException) -> InferenceError:
    """Log the cause under a new id; the caller gets the id alone.

    Of the cause, its type and where it was raised. The message too where it speaks of shapes and
    devices, as PyTorch's do; others may repeat a text, and a log must not.
    """
    name = uuid.uuid4().hex[:12]
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
    speaks_of_devices = isinstance(error, RuntimeError | FloatingPointError | MemoryError)
    what = f"{type(error).__name__}: {error}" if speaks_of_devices else type(error).__name__
    log.error("inference error %s: %s at %s", name, what, where)
    return InferenceError(f"the request could not be computed; the log tells more under {name}")
