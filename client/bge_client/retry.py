"""How often a failed request is repeated, and after what pause."""

from __future__ import annotations

import logging
import math
import random

from .deadline import Deadline
from .errors import BGEError

RETRIES = 6  # of one HTTP request, and of one job
MIN_PAUSE, MAX_PAUSE = 0.25, 10.0  # seconds before a retry, before the jitter


class Retries:
    """The failed attempts of one request or job.

    By default `RETRIES` of them are repeated, and rate limits until the deadline. With a finite
    `limit`, so many are repeated, rate limits among them, and none after more than `MAX_PAUSE`:
    someone else may answer sooner. `logger` names the package that repeats them.
    """

    def __init__(
        self, deadline: Deadline, limit: float | None = None, *, logger: str = "bge_client"
    ) -> None:
        self._log = logging.getLogger(logger)
        self._deadline = deadline
        self._limit = RETRIES if limit is None else limit
        self._is_patient = limit in (None, math.inf)
        self._attempts = self._failures = 0

    def pause(self, error: BGEError) -> float:
        """Return the seconds to wait before the next attempt.

        Raises:
            BGEError: `error` itself, if it is permanent or no retry or no time is left.
        """
        self._attempts += 1
        self._failures += not (error.patient and self._is_patient)
        seconds = _pause(error, self._attempts)
        longest = self._deadline.remaining
        if not self._is_patient:
            longest = min(longest, MAX_PAUSE + MIN_PAUSE)  # `_pause` adds the second as jitter
        is_last = self._failures > self._limit or seconds >= longest
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
