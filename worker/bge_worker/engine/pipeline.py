"""Micro-batches in a row: the host turns one into results while the device computes the next.

Out of memory halves a micro-batch until the failing text is alone. Any other error does too, so
that a text that cannot be computed fails alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from ..errors import DeviceError, OutOfMemoryError, WorkerError, logged_inference_error
from .engine import Engine, RunningBatch
from .outputs import Outputs, Result
from .tokenizer import Encoded

log = logging.getLogger(__name__)

FILL_STEPS = 10  # in which the fill of micro-batches is counted


class BatchItem(Protocol):
    """One text of a micro-batch, for whoever waits for its result."""

    @property
    def text(self) -> Encoded: ...

    @property
    def position(self) -> tuple[str, int]:
        """The field of the request that holds the text, and its index there."""

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for the result any more."""

    def add_result(self, result: Result) -> None: ...

    def fail(self, error: WorkerError) -> None: ...


@dataclass
class Counts:
    """Work since the start."""

    batches: int = 0
    tokens: int = 0
    out_of_memory: int = 0
    seconds: float = 0.0  # from launch to completion, of micro-batches that succeeded
    # Micro-batches by their tokens: up to 1/10 of the budget, 2/10, …, all of it, and above.
    fills: list[int] = field(default_factory=lambda: [0] * (FILL_STEPS + 1))


@dataclass(frozen=True)
class _MicroBatch:
    """A micro-batch that was launched at `began`."""

    outputs: Outputs
    items: Sequence[BatchItem]
    running: RunningBatch
    began: float


class Pipeline:
    """Runs micro-batches on an engine, for one thread.

    Every item gets a result or a WorkerError, unless the device fails.
    """

    def __init__(self, engine: Engine) -> None:
        self.counts = Counts()
        self._engine = engine
        self._budget = engine.runtime.max_batch_tokens
        self._computed: _MicroBatch | None = None  # not turned into results yet

    @property
    def is_pending(self) -> bool:
        """Whether a micro-batch was computed and not turned into results yet: `finish` does."""
        return self._computed is not None

    def run(self, outputs: Outputs, items: Sequence[BatchItem]) -> None:
        """Launch a micro-batch, finish the one before it, and wait for the device.

        Raises DeviceError: the device has failed.
        """
        launched = self._launch(outputs, items)
        self.finish()
        if launched is not None:
            self._wait(launched)

    def finish(self) -> None:
        """Turn the last micro-batch into results. Raises DeviceError."""
        batch, self._computed = self._computed, None
        if batch is None:
            return
        try:
            results = batch.running.results()
        except BaseException as error:
            failure = self._failure(batch.items, error)
        else:
            for item, result in zip(batch.items, results, strict=True):
                item.add_result(result)
            return
        self._fail_or_halve(batch.outputs, batch.items, failure)

    def _launch(self, outputs: Outputs, items: Sequence[BatchItem]) -> _MicroBatch | None:
        """Start a micro-batch, or resolve its items at once if that fails."""
        tokens = sum(len(item.text.ids) for item in items)
        self.counts.batches += 1
        self.counts.tokens += tokens
        self.counts.fills[min(FILL_STEPS, (tokens - 1) * FILL_STEPS // self._budget)] += 1
        began = perf_counter()
        try:
            running = self._engine.launch(outputs, [item.text for item in items])
        except BaseException as error:
            failure = self._failure(items, error)
        else:
            return _MicroBatch(outputs, items, running, began)
        self.finish()  # the halves would take its place, and need its memory
        self._fail_or_halve(outputs, items, failure)
        return None

    def _wait(self, batch: _MicroBatch) -> None:
        """Wait for the device. What was computed already is finished at once."""
        try:
            batch.running.wait()
        except BaseException as error:
            failure = self._failure(batch.items, error)
        else:
            self.counts.seconds += perf_counter() - batch.began
            self._computed = batch
            if not batch.running.is_asynchronous:
                self.finish()
            return
        self._fail_or_halve(batch.outputs, batch.items, failure)

    def _failure(self, items: Sequence[BatchItem], error: BaseException) -> WorkerError | None:
        """Log what went wrong. Return the error for the caller if a text is alone, else None.

        The error itself is not kept: its traceback holds the tensors of the failed forward, and the
        halves need their memory.
        """
        if isinstance(error, DeviceError | KeyboardInterrupt | SystemExit):
            raise error
        failure = None if len(items) > 1 else _failure_of_one_text(items[0], error)
        self.counts.out_of_memory += isinstance(error, OutOfMemoryError)
        log.warning(
            "%s in a micro-batch of %d texts, %d tokens: %s",
            *(type(error).__name__, len(items), sum(len(item.text.ids) for item in items)),
            "halving it" if failure is None else "its request fails",
        )
        return failure

    def _fail_or_halve(
        self, outputs: Outputs, items: Sequence[BatchItem], failure: WorkerError | None
    ) -> None:
        """Halve a micro-batch that failed until the failing text is alone."""
        if failure is not None:
            items[0].fail(failure)
            return
        middle = len(items) // 2
        for half in (items[:middle], items[middle:]):
            if waiting := [item for item in half if not item.is_over]:
                self.run(outputs, waiting)
                self.finish()


def _failure_of_one_text(item: BatchItem, error: BaseException) -> WorkerError:
    if isinstance(error, OutOfMemoryError):
        field, index = item.position
        return OutOfMemoryError(
            f"`{field}[{index}]` has {len(item.text.ids)} tokens and does "
            "not fit the device on its own",
            field=field,
            index=index,
        )
    return logged_inference_error(error)
