"""Pieces of a bulk call: sent at once, in order again, halved where one is too large."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from itertools import accumulate
from typing import TypeVar

from .deadline import Deadline
from .errors import BGEError, TooLargeError, WorkerError

Part = TypeVar("Part")
Send = Callable[[Deadline, list[str], int], Part]  # call, texts, how many came before them


def send_all(
    deadline: Deadline, cut: Iterator[list[str]], send: Send[Part], at_once: int
) -> list[Part]:
    """What `send` makes of each piece, in order; a single one is sent by this very thread.

    The first that fails, whichever, ends it, and the others are given up at once.
    """
    listed = list(cut)
    if len(listed) == 1:
        return [send(deadline, listed[0], 0)]
    starts = accumulate((len(piece) for piece in listed), initial=0)
    pool = ThreadPoolExecutor(at_once, "bge-client")
    sent = [
        pool.submit(send, deadline, piece, before)
        for piece, before in zip(listed, starts, strict=False)
    ]
    try:
        ended = wait(sent, return_when=FIRST_EXCEPTION).done
        return [part.result() for part in sent if part in ended]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        if not all(part.done() for part in sent):
            deadline.cut()


def send_each(
    work: Iterator[tuple[Deadline, list[str]]], send: Send[Part], at_once: int
) -> Generator[Part, None, None]:
    """What `send` makes of each piece, in order, with twice `at_once` pieces on their way.

    If one fails, or nobody wants the rest, the others are given up at once; if `work` fails,
    what it gave before is still sent.
    """
    pool = ThreadPoolExecutor(at_once, "bge-client")
    waiting: deque[tuple[Deadline, Future[Part]]] = deque()
    before = 0
    try:
        while isinstance(ahead := next_or_error(work), tuple):
            deadline, piece = ahead
            while waiting and (len(waiting) >= 2 * at_once or waiting[0][1].done()):
                yield waiting.popleft()[1].result()
            waiting.append((deadline, pool.submit(send, deadline, piece, before)))
            before += len(piece)
        while waiting:
            yield waiting.popleft()[1].result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for deadline, _ in waiting:
            deadline.cut()
    if isinstance(ahead, Exception):
        raise ahead


def send_halving(
    send: Callable[[Deadline, list[str]], Part],
    deadline: Deadline,
    piece: list[str],
    before: int,
    field: str,
) -> list[Part]:
    """What `send` makes of a piece, or of its halves if it is too large; places as the caller's."""
    try:
        return [send(deadline, piece)]
    except BGEError as error:
        if not isinstance(error, TooLargeError) or len(piece) == 1:
            raise _placed(error, field, before) from None
    middle = len(piece) // 2
    return [
        *send_halving(send, deadline, piece[:middle], before, field),
        *send_halving(send, deadline, piece[middle:], before + middle, field),
    ]


def next_or_error(work: Iterator[Part]) -> Part | Exception | None:
    """The next one, what was raised instead of it, or None at the end."""
    try:
        return next(work, None)
    except Exception as error:
        return error


def _placed(error: BGEError, field: str, before: int) -> BGEError:
    """The error, its `texts[3]` counted from the first text of the call."""
    if not isinstance(error, WorkerError) or before == 0:
        return error

    def counted(match: re.Match[str]) -> str:
        return f"`{field}[{int(match[1]) + before}]"

    moved = type(error)(re.sub(rf"`{field}\[(\d+)\]", counted, str(error)))
    moved.retry_after = error.retry_after
    return moved
