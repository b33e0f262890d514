"""How often a failed request is repeated, and after what pause."""

from __future__ import annotations

import logging
import random

from .deadline import Deadline
from .errors import BGEError

RETRIES = 6  # of one HTTP request, and of one job; rate limits are retried until the deadline
MIN_PAUSE, MAX_PAUSE = 0.25, 10.0  # seconds before a retry, before the jitter


class Retries:
    """The failed attempts of one request or job. `limit` of them may be repeated.

    `logger` names the package that repeats them.
    """

    def __init__(
        self, deadline: Deadline, limit: float = RETRIES, *, logger: str = "bge_client"
    ) -> None:
        self._log = logging.getLogger(logger)
        self._deadline = deadline
        self._limit = limit
        self._attempts = self._failures = 0

    def pause(self, error: BGEError) -> float:
        """Return the seconds to wait before the next attempt.

        Raises:
            BGEError: `error` itself, if it is permanent or no retry or no time is left.
        """
        self._attempts += 1
        self._failures += not error.patient
        seconds = _pause(error, self._attempts)
        is_last = self._failures > self._limit or seconds >= self._deadline.remaining
        if is_last or not error.retry:
            raise error
        self._log.warning("%s; retrying in %.1f s", error, seconds)
        return seconds


def _pause(error: BGEError, attempts: int) -> float:
    """Return `Retry-After`, or an exponential backoff, in seconds and with jitter."""
    if error.retry_after is not None:
        return error.retry_after + random.uniform(0, MIN_PAUSE)
    pause = min(MAX_PAUSE, MIN_PAUSE * 2.0 ** min(attempts, 10))
    return random.uniform(pause / 2, pause)
