"""How often a failed request to Qdrant is repeated, and after what pause."""

from __future__ import annotations

import logging
import random
import time

from bge_client import BGEError

log = logging.getLogger("bge_retrieval")

RETRIES = 6  # rate limits are retried until the time is over
MIN_PAUSE, MAX_PAUSE = 0.25, 10.0  # seconds before a retry, before the jitter


class Retries:
    """The failed attempts of one request, which may be repeated for `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._attempts = self._failures = 0

    def pause(self, error: BGEError) -> float:
        """Return the seconds to wait before the next attempt.

        Raises:
            BGEError: `error` itself, if it is permanent or no retry or no time is left.
        """
        self._attempts += 1
        self._failures += not error.patient
        seconds = _pause(error, self._attempts)
        is_last = self._failures > RETRIES or time.monotonic() + seconds >= self._end
        if is_last or not error.retry:
            raise error from None
        log.warning("%s; retrying in %.1f s", error, seconds)
        return seconds


def _pause(error: BGEError, attempts: int) -> float:
    """Return `Retry-After`, or an exponential backoff, in seconds and with jitter."""
    if error.retry_after is not None:
        return error.retry_after + random.uniform(0, MIN_PAUSE)
    pause = min(MAX_PAUSE, MIN_PAUSE * 2.0 ** min(attempts, 10))
    return random.uniform(pause / 2, pause)
