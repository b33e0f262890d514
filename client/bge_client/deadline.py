"""The time limit of a call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .errors import ConfigurationError, DeadlineError


class Deadline:
    """The end of a call on the monotonic clock. The clock starts with the call's first request.

    The requests of a call may share `cancelled`, an event that ends all of them.

    Raises:
        ConfigurationError: `seconds` is not a usable timeout.
    """

    def __init__(
        self,
        seconds: float,
        cancelled: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < seconds < threading.TIMEOUT_MAX:
            raise ConfigurationError(f"`timeout` must be above 0 seconds. Given: {seconds}")
        self.seconds = seconds
        self.cancelled = cancelled or threading.Event()
        self._clock = clock
        self._end_time: float | None = None

    def start(self) -> None:
        """Start the clock, unless it runs already."""
        if self._end_time is None:
            self._end_time = self._clock() + self.seconds

    @property
    def remaining(self) -> float:
        if self._end_time is None:
            return self.seconds
        return max(0.0, self._end_time - self._clock())

    def check(self) -> None:
        """Raises DeadlineError if the deadline has passed or the call was cancelled."""
        if self.cancelled.is_set() or self.remaining == 0:
            raise self.error()

    def error(self) -> DeadlineError:
        return DeadlineError(f"not done within {self.seconds:g} seconds")

    def sleep(self, seconds: float) -> None:
        """Block the thread. Raises DeadlineError as `check` does."""
        self.cancelled.wait(min(seconds, self.remaining))
        self.check()
