"""The end of a server: requests in flight finish, new ones are refused."""

from __future__ import annotations

from time import monotonic

GRACE_SECONDS = 30.0  # for requests in flight when the server stops


class Drain:
    """Counts requests in flight, and knows when the server may stop."""

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self.in_flight = 0
        self._grace_seconds = grace_seconds
        self._end: float | None = None

    def start(self) -> None:
        self._end = monotonic() + self._grace_seconds

    @property
    def is_stopping(self) -> bool:
        return self._end is not None

    @property
    def is_over(self) -> bool:
        """Whether no request is in flight, or the time for them is over."""
        return self._end is not None and (self.in_flight == 0 or monotonic() >= self._end)
