"""Retry requests to Qdrant: idempotent, so that one whose response was lost can be repeated."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from bge_client import BGEError, HTTPStatusError, TransportError

log = logging.getLogger("bge_retrieval")

RETRIES = 6  # rate limits are retried until the time is over
MIN_PAUSE, MAX_PAUSE = 0.25, 10.0  # seconds before a retry, before the jitter
T = TypeVar("T")


def retry(action: Callable[[], T], seconds: float) -> T:
    """Call `action`, and repeat it on transient errors for at most `seconds`.

    Raises:
        BGEError: the last error, once no retry or no time is left.
    """
    end = time.monotonic() + seconds
    attempts = failures = 0
    while True:
        try:
            return action()
        except (TransportError, HTTPStatusError) as error:
            attempts += 1
            failures += not error.patient
            pause = _pause(error, attempts)
            if not error.retry or failures > RETRIES or time.monotonic() + pause >= end:
                raise
            log.warning("%s; retrying in %.1f s", error, pause)
            time.sleep(pause)


def _pause(error: BGEError, attempts: int) -> float:
    """Return `Retry-After`, or an exponential backoff, in seconds and with jitter."""
    if error.retry_after is not None:
        return error.retry_after + random.uniform(0, MIN_PAUSE)
    pause = min(MAX_PAUSE, MIN_PAUSE * 2.0 ** min(attempts, 10))
    return random.uniform(pause / 2, pause)
