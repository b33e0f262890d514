"""One account for the bytes that callers make the HTTP server hold.

Bodies from their first byte until they are answered, bodies of queued jobs until they have run, and
answers until all but their last piece is sent; a job's body counts twice while its request is being
answered. What the results of finished jobs take has a limit of its own (`jobs.KEPT_BYTES`): the
oldest goes first.
"""

from __future__ import annotations

from ..errors import OverloadedError

MAX_HELD_BYTES = 1 << 29


class HeldBytes:
    """Belongs to the event loop, so nothing here needs a lock."""

    def __init__(self, limit: int = MAX_HELD_BYTES) -> None:
        self.limit = limit
        self.held = 0

    def check(self, size: int) -> None:
        """Raises OverloadedError: so many bytes more would be too many."""
        if self.held + size > self.limit:
            raise OverloadedError(
                f"{self.held} bytes of requests and answers are held, of {self.limit}; "
                "try again later"
            )

    def take(self, size: int) -> None:
        """Hold so many bytes more. Raises OverloadedError: they would be too many."""
        self.check(size)
        self.held += size

    def give_back(self, size: int) -> None:
        self.held -= size
