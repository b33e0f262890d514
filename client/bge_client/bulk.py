"""Threads that run the tasks of a call."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import closing
from itertools import chain
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from .calls import Task
from .protocol import CANCEL_SECONDS
from .transport import Transport

Result = TypeVar("Result")


def run_all(transport: Transport, tasks: list[Task[Result]], max_in_flight: int) -> list[Result]:
    """Run tasks that share a deadline, and return their results in order.

    The first failure, of whichever task, cancels the others and is raised. A single task needs no
    other thread.
    """
    exchange, deadline = tasks[0]
    if len(tasks) == 1:
        return transport.run(exchange, deadline)
    with closing(_Workers[Result](transport, max_in_flight, deadline.cancelled)) as workers:
        futures = [workers.submit(task) for task in tasks]
        done = wait(futures, return_when=FIRST_EXCEPTION).done
        return [result for future in futures if future in done for result in future.result()]


def run_each(
    transport: Transport,
    tasks: Iterator[Task[Result]],
    max_in_flight: int,
    cancelled: threading.Event,
) -> Generator[Result, None, None]:
    """Yield the results in order, with at most twice `max_in_flight` tasks queued or in flight.

    A failure, or closing the generator, sets `cancelled`, which ends all other tasks.
    """
    pending: deque[Future[list[Result]]] = deque()
    with closing(_Workers[Result](transport, max_in_flight, cancelled)) as workers:
        for task in tasks:
            while pending and (len(pending) >= 2 * max_in_flight or pending[0].done()):
                yield from pending.popleft().result()
            pending.append(workers.submit(task))
        while pending:
            yield from pending.popleft().result()


class _Workers(Generic[Result]):
    """Up to `count` threads that run tasks, until `close`.

    A thread may still wait for a response then, to cancel its job. Unlike an executor's, it does
    not keep the interpreter from exiting.
    """

    def __init__(self, transport: Transport, count: int, cancelled: threading.Event) -> None:
        self._transport = transport
        self._count = count
        self._cancelled = cancelled
        self._process_id = os.getpid()
        self._queue: SimpleQueue[tuple[Future[list[Result]], Task[Result]] | None] = SimpleQueue()
        self.threads: list[threading.Thread] = []
        _open.add(self)

    def submit(self, task: Task[Result]) -> Future[list[Result]]:
        future: Future[list[Result]] = Future()
        self._queue.put((future, task))
        if len(self.threads) < self._count:
            thread = threading.Thread(target=self._work, name="bge-client", daemon=True)
            thread.start()
            self.threads.append(thread)
        return future

    def close(self) -> None:
        """End all tasks. Does nothing in the child of a fork, which has no threads to end."""
        if os.getpid() == self._process_id:
            self._cancelled.set()
            for _ in self.threads:
                self._queue.put(None)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            future, task = item
            try:
                future.set_result(self._transport.run(*task))
            except BaseException as error:
                future.set_exception(error)


_open: weakref.WeakSet[_Workers[Any]] = weakref.WeakSet()


@atexit.register
def _cancel_jobs_at_exit() -> None:
    """Cancel the jobs of calls that were abandoned, as far as their ids are known by now."""
    calls = list(_open)  # running threads keep theirs in it
    for workers in calls:
        workers.close()
    end_time = time.monotonic() + CANCEL_SECONDS
    for thread in chain.from_iterable(workers.threads for workers in calls):
        thread.join(max(0.0, end_time - time.monotonic()))
