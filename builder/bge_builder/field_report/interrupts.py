"""Signals and time limits: whatever ends a run, its endpoints are deleted."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StepTimeoutError(BaseException):
    """The step takes longer than it may. No Exception: no library may catch it."""


def raise_interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def raise_timeout(signum: int, frame: FrameType | None) -> None:
    raise StepTimeoutError


def interrupt_on_signals() -> None:
    """Turn the signals that end a process into KeyboardInterrupt."""
    for name in SIGNALS:
        if signal.getsignal(name) != signal.SIG_IGN:  # as SIGHUP under nohup
            signal.signal(name, raise_interrupt)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Handle signals, and the end of a time limit, at the end of the block."""
    received: list[int] = []
    handlers = {
        name: signal.signal(name, lambda signum, frame: received.append(signum))
        for name in (*SIGNALS, signal.SIGALRM)
    }
    try:
        yield
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
        for signum in received:
            signal.raise_signal(signum)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise StepTimeoutError in the block after so many seconds."""
    previous = signal.signal(signal.SIGALRM, raise_timeout)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
