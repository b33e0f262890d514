"""When a provider is left alone after failures, and what fallbacks may cost in a day."""

from __future__ import annotations

import threading
import time
from typing import Literal

from ..errors import (
    BGEError,
    BudgetError,
    ConfigurationError,
    FingerprintError,
    HTTPStatusError,
    NoWorkerError,
    TooLargeError,
    TransportError,
    ValidationError,
)

FAILURES = 3  # in a row that open a circuit, if each may be the request's own
OPEN_SECONDS = 30.0  # until one request tries whether the provider is back
DAY_SECONDS = 86_400
# The request is at fault, or the vectors must not be used: no other provider is asked.
NO_FALLBACK_ERRORS = (ValidationError, TooLargeError, ConfigurationError, FingerprintError)
REQUEST_STATUSES = (400, 413, 422)  # of a provider that works, and refuses this request


class Circuit:
    """Whether a provider gets requests.

        closed ── failures in a row ──▶ open ── OPEN_SECONDS ──▶ half-open: one trial
          ▲                               ▲                          │
          └───────────── success ─────────┼──────────────────────────┤
                                          └───────── failure ────────┘

    `admit` a request, then `record` how it ended, unless the circuit was open.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._opened_at = 0.0
        self._has_trial = False

    def admit(self) -> Literal["closed", "open", "trial"]:
        """Return the state for a request that is about to be sent. There is one trial at a time."""
        with self._lock:
            if self._failures < FAILURES:
                return "closed"
            if self._has_trial or time.monotonic() < self._opened_at + OPEN_SECONDS:
                return "open"
            self._has_trial = True
            return "trial"

    def record(self, error: BaseException | None, *, is_trial: bool) -> None:
        """Record the end of an admitted request: a success, or its error.

        An error that says nothing about the provider leaves the circuit as it was.
        """
        with self._lock:
            self._has_trial = self._has_trial and not is_trial
            if error is None:
                self._failures = 0
            elif weight := failure_weight(error):
                self._failures += weight
                self._opened_at = time.monotonic()


def failure_weight(error: BaseException) -> int:
    """Return how many failures an error counts as: 0 if it says nothing about the provider.

    What was retried in vain, and a key that is not accepted, would fail any request.
    """
    if isinstance(error, HTTPStatusError) and error.status in REQUEST_STATUSES:
        return 0
    if isinstance(error, (TransportError, NoWorkerError, HTTPStatusError)):
        return FAILURES
    is_neutral = isinstance(error, (*NO_FALLBACK_ERRORS, BudgetError))
    return int(isinstance(error, BGEError) and not is_neutral)


class Budget:
    """The tokens that fallbacks may use in a day (UTC). Without `max_tokens` it is unlimited."""

    def __init__(self, max_tokens: int | None = None) -> None:
        if max_tokens is not None and max_tokens < 0:
            raise ConfigurationError(f"`max_fallback_tokens` must be >= 0. Given: {max_tokens}")
        self._max_tokens = max_tokens
        self._lock = threading.Lock()
        self._day = 0
        self._used = 0

    def reserve(self, tokens: int) -> None:
        """Raises BudgetError if `tokens` are more than what is left of the day's."""
        with self._lock:
            day = int(time.time()) // DAY_SECONDS
            if day != self._day:
                self._day, self._used = day, 0
            if self._max_tokens is not None and self._used + tokens > self._max_tokens:
                raise BudgetError(
                    f"fallbacks may use {self._max_tokens} tokens a day (`max_fallback_tokens`), "
                    f"and have used {self._used}. Given: about {tokens}",
                    limit=self._max_tokens,
                )
            self._used += tokens

    def settle(self, reserved: int, used: int) -> None:
        """Replace a reservation by what was used."""
        with self._lock:
            self._used = max(0, self._used + used - reserved)
