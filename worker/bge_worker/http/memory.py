"""The bytes that callers make the HTTP server hold, counted and limited.

Counted are bodies from their first byte until they are answered, bodies of queued jobs until the
job has run, and replies until all but their last chunk is sent; a job's body counts twice while its
request is being answered. Results of finished jobs have a limit of their own
(`jobs.MAX_RESULT_BYTES`).
"""

from __future__ import annotations

from ..errors import OverloadedError

MAX_HELD_BYTES = 1 << 29


class HeldBytes:
    """Belongs to the event loop, so it needs no lock."""

    def __init__(self, limit: int = MAX_HELD_BYTES) -> None:
        self.limit = limit
        self.held = 0

    def check(self, size: int) -> None:
        """Raises OverloadedError if `size` more bytes would exceed the limit."""
        if self.held + size > self.limit:
            raise OverloadedError(
                f"{self.held} bytes of requests and replies are held, of {self.limit}; "
                "try again later"
            )

    def take(self, size: int) -> None:
        """Count `size` more bytes. Raises as `check`."""
        self.check(size)
        self.held += size

    def give_back(self, size: int) -> None:
        self.held -= size
