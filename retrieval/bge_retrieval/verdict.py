"""Checks of measured values, and the verdict on whether a candidate can replace a baseline.

Shared by evaluation on judged queries and by the summary of shadow mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

ROUNDING = 1e-9  # in floating point, 0.45 / 0.5 may be less than 0.9
MIN_QUERIES = 20  # for a verdict
P50_MS, P99_MS = 100.0, 500.0  # default limits of a candidate's latency


@dataclass(frozen=True)
class Check:
    """One condition of a verdict. Shares are in 0..1 and shown in percent.

    A share with a `baseline` is the ratio to that system's value. `low` is the low end of its 95%
    interval.
    """

    name: str
    bound: Literal["at least", "at most", "below"]
    limit: float
    measured: float | None  # None if there is nothing to measure
    unit: Literal["%", "ms"] = "%"
    low: float | None = None
    baseline: str = ""
    passed: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "passed", self._is_met())

    def _is_met(self) -> bool:
        if self.measured is None:
            return False
        if self.bound == "at least":
            return self.measured >= self.limit - ROUNDING
        if self.bound == "at most":
            return self.measured <= self.limit + ROUNDING
        return self.measured < self.limit

    @property
    def required_text(self) -> str:
        return f"{self.bound} {self._shown(self.limit):g}{self._suffix}"

    @property
    def measured_text(self) -> str:
        return "–" if self.measured is None else self._format(self.measured)

    @property
    def sentence_part(self) -> str:
        if not self.baseline:
            return f"{self.name} {self.measured_text}"
        if self.measured is None:
            return f"{self.name} cannot be compared, because {self.baseline} has 0"
        return f"{self.measured_text} of {self.baseline}'s {self.name}"

    @property
    def doubt(self) -> str:
        """If the check passed but its interval is partly below the minimum: the interval's end."""
        if not self.passed or self.low is None or self.low >= self.limit - ROUNDING:
            return ""
        return f"{self.name} down to {self._format(self.low)}"

    def _shown(self, number: float) -> float:
        return round(number * 100, 9) if self.unit == "%" else number

    @property
    def _suffix(self) -> str:
        return "%" if self.unit == "%" else " ms"

    def _format(self, number: float) -> str:
        """Format with one decimal, or with more if the result would read as the limit itself."""
        shown, limit = self._shown(number), self._shown(self.limit)
        candidates = (f"{shown:.{decimals}f}" for decimals in range(1, 10))
        digits = next((text for text in candidates if float(text) != limit), f"{shown:.1f}")
        return digits + self._suffix


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate can replace the baseline."""

    outcome: Literal["pass", "fail", "too few queries"]
    sentence: str
    checks: list[Check]


def judge(name: str, checks: Sequence[Check], queries: int) -> Verdict:
    """Return the verdict on the system `name`, measured on this many queries."""
    failed = [check for check in checks if not check.passed]
    if failed:
        texts = (f"{check.sentence_part} (required: {check.required_text})" for check in failed)
        sentence = f"{name} falls short in {len(failed)} of {len(checks)} checks: "
    else:
        texts = (check.sentence_part for check in checks)
        sentence = f"{name} passes all {len(checks)} checks: "
    sentence += ", ".join(texts) + "."
    doubts = ", ".join(check.doubt for check in checks if check.doubt)
    if doubts:
        sentence += f" This is uncertain: the 95% interval includes {doubts}."
    if queries < MIN_QUERIES:
        prefix = f"{queries} queries are too few for a verdict, which needs {MIN_QUERIES}."
        return Verdict("too few queries", f"{prefix} As measured, {sentence}", list(checks))
    return Verdict("fail" if failed else "pass", sentence, list(checks))
