"""Summarize the file that a `Shadow` wrote."""

from __future__ import annotations

import math
import os
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from bge_client import ConfigurationError, strict_json

from ..agreement import Agreement
from .recorder import Names, utc

START = b'{"kind": "'  # how each line begins: identifies an incomplete line


@dataclass(frozen=True)
class Spread:
    mean: float
    p10: float
    p50: float


@dataclass(frozen=True)
class Latency:
    """In milliseconds."""

    p50: float
    p99: float


@dataclass(frozen=True)
class Pair:
    """The comparisons of the live provider `live` with `other`.

    `count` comparisons succeeded. `errors` counts the failures of `other` by type. `live_ms` covers
    all queries, `other_ms` only the successful ones.
    """

    live: str
    other: str
    count: int
    errors: dict[str, int]
    overlap: Spread | None
    rbo: Spread | None
    tau: Spread | None
    same_first: float | None  # share of comparisons
    live_ms: Latency
    other_ms: Latency | None


@dataclass(frozen=True)
class ShadowSummary:
    """The comparisons in a file, by pair of providers. A value without measurements is None.

    Only lines written at `since` (UTC) or later count; None counts all.
    `count` and `errors` cover all pairs. `dropped` counts dropped comparisons; `broken` counts
    incomplete lines of killed processes.
    """

    count: int
    errors: dict[str, int]
    dropped: int
    broken: int
    pairs: list[Pair]
    since: str | None = None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass
class _PairLines:
    """The values read so far for one pair."""

    errors: Counter[str] = field(default_factory=Counter)
    live_ms: list[float] = field(default_factory=list)
    other_ms: list[float] = field(default_factory=list)
    measures: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in Agreement._fields}
    )

    def add(self, line: dict[str, Any]) -> None:
        self.live_ms.append(_finite(line["live_ms"]))
        if "error" in line:
            self.errors[str(line["error"])] += 1
            return
        self.other_ms.append(_finite(line["other_ms"]))
        for name, values in self.measures.items():
            if line[name] is not None:
                values.append(_finite(line[name]))

    def pair(self, names: Names) -> Pair:
        same_first = self.measures["same_first"]
        return Pair(
            *names,
            count=len(same_first),
            errors=dict(self.errors.most_common()),
            overlap=_spread(self.measures["overlap"]),
            rbo=_spread(self.measures["rbo"]),
            tau=_spread(self.measures["tau"]),
            same_first=float(np.mean(same_first)) if same_first else None,
            live_ms=_latency(self.live_ms),
            other_ms=_latency(self.other_ms) if self.other_ms else None,
        )


def summarize(path: str | os.PathLike[str], window: timedelta | None = None) -> ShadowSummary:
    """Summarize the file that a `Shadow` wrote, or only the last `window` of it.

    Incomplete lines are skipped and counted.

    Raises:
        ConfigurationError: a `Shadow` did not write a line. The message names it, counted from 1.
        OSError: the file cannot be read.
    """
    since = None if window is None else utc(time.time() - window.total_seconds())
    counts: Counter[str] = Counter()
    lines: defaultdict[Names, _PairLines] = defaultdict(_PairLines)
    with Path(path).open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                _add_line(raw, since, counts, lines)
            except (KeyError, TypeError, ValueError, OverflowError):
                raise ConfigurationError(
                    f"{path}, line {number}, was not written by a `Shadow`"
                ) from None
    pairs = [lines[names].pair(names) for names in sorted(lines)]
    return ShadowSummary(
        count=sum(pair.count for pair in pairs),
        errors=dict(sum((pair.errors for pair in lines.values()), Counter[str]()).most_common()),
        dropped=counts["dropped"],
        broken=counts["broken"],
        pairs=pairs,
        since=since,
    )


def _add_line(
    raw: bytes, since: str | None, counts: Counter[str], lines: defaultdict[Names, _PairLines]
) -> None:
    """Raises KeyError, TypeError, ValueError or OverflowError if no `Shadow` wrote the line."""
    if raw.isspace():
        return  # two processes repaired the same incomplete line
    line = _parse_line(raw)
    if line is None:
        counts["broken"] += 1
    elif since is not None and str(line["time"]) < since:
        return
    elif line["kind"] == "dropped":
        counts["dropped"] += int(line["count"])
    elif line["kind"] == "comparison":
        lines[str(line["live"]), str(line["other"])].add(line)
    else:
        raise ValueError("unknown kind")


def _parse_line(raw: bytes) -> Any:
    """Parse a line. Returns None if it is incomplete. Raises ValueError if it is foreign."""
    try:
        return strict_json.loads(raw)
    except ValueError:
        if START.startswith(raw.rstrip(b"\n")[: len(START)]):
            return None
        raise


def _finite(value: Any) -> float:
    """Return a float. Raises TypeError, ValueError or OverflowError if it is not finite."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    return Spread(float(np.mean(values)), *np.percentile(values, (10, 50)).tolist())


def _latency(values: list[float]) -> Latency:
    return Latency(*np.percentile(values, (50, 99)).tolist())
