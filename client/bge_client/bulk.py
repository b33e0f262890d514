"""Send the chunks of a call concurrently and return the results in order."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from itertools import accumulate
from typing import TypeVar

from .deadline import Deadline
from .errors import BGEError, TooLargeError, WorkerError

Result = TypeVar("Result")
Send = Callable[[Deadline, list[str], int], Result]  # deadline, chunk, index of its first text


def send_all(
    deadline: Deadline, chunks: Iterator[list[str]], send: Send[Result], max_in_flight: int
) -> list[Result]:
    """Send all chunks and return their results in order. A single chunk needs no other thread.

    The first failure, of whichever chunk, cancels the others and is raised.
    """
    chunk_list = list(chunks)
    if len(chunk_list) == 1:
        return [send(deadline, chunk_list[0], 0)]
    offsets = accumulate((len(chunk) for chunk in chunk_list), initial=0)
    pool = ThreadPoolExecutor(max_in_flight, "bge-client")
    futures = [
        pool.submit(send, deadline, chunk, offset)
        for chunk, offset in zip(chunk_list, offsets, strict=False)
    ]
    try:
        done = wait(futures, return_when=FIRST_EXCEPTION).done
        return [future.result() for future in futures if future in done]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        if not all(future.done() for future in futures):
            deadline.cancel()


def send_each(
    work: Iterator[tuple[Deadline, list[str]]], send: Send[Result], max_in_flight: int
) -> Generator[Result, None, None]:
    """Yield the results in order, with at most twice `max_in_flight` chunks queued or in flight.

    A failure, or closing the generator, cancels all other chunks. If `work` raises, the chunks
    before that are still sent, and the error is raised after their results.
    """
    pool = ThreadPoolExecutor(max_in_flight, "bge-client")
    pending: deque[tuple[Deadline, Future[Result]]] = deque()
    offset = 0
    try:
        while isinstance(item := next_or_error(work), tuple):
            deadline, chunk = item
            while pending and (len(pending) >= 2 * max_in_flight or pending[0][1].done()):
                yield pending.popleft()[1].result()
            pending.append((deadline, pool.submit(send, deadline, chunk, offset)))
            offset += len(chunk)
        while pending:
            yield pending.popleft()[1].result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for deadline, _ in pending:
            deadline.cancel()
    if isinstance(item, Exception):
        raise item


def send_with_halving(
    send: Callable[[Deadline, list[str]], Result],
    deadline: Deadline,
    chunk: list[str],
    offset: int,
    field: str,
) -> list[Result]:
    """Send a chunk, or its halves if it is too large. Errors count texts from the call's first."""
    try:
        return [send(deadline, chunk)]
    except BGEError as error:
        if not isinstance(error, TooLargeError) or len(chunk) == 1:
            raise _with_offset(error, field, offset) from None
    middle = len(chunk) // 2
    return [
        *send_with_halving(send, deadline, chunk[:middle], offset, field),
        *send_with_halving(send, deadline, chunk[middle:], offset + middle, field),
    ]


def next_or_error(work: Iterator[Result]) -> Result | Exception | None:
    """Return the next item, the exception raised instead of it, or None at the end."""
    try:
        return next(work, None)
    except Exception as error:
        return error


def _with_offset(error: BGEError, field: str, offset: int) -> BGEError:
    """Return the error with each `texts[3]` in its message moved by `offset`."""
    if not isinstance(error, WorkerError) or offset == 0:
        return error

    def shift(match: re.Match[str]) -> str:
        return f"`{field}[{int(match[1]) + offset}]"

    shifted = type(error)(re.sub(rf"`{field}\[(\d+)\]", shift, str(error)))
    shifted.retry_after = error.retry_after
    return shifted
