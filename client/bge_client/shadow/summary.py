"""What a file that a `Shadow` has written says."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import strict_json
from ..errors import ConfigurationError
from .agreement import Agreement
from .comparing import Names

START = b'{"kind": "'  # how each line begins, so that half a line is known for one of ours


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
    """What was compared of one provider's answers, `live`, with those of `other`.

    `count` comparisons were made, and `errors`, by their type, stand where the other one did not
    answer. The live one's latency is what the caller waited; the other's is of answers only.
    """

    live: str
    other: str
    count: int
    errors: dict[str, int]
    overlap: Spread | None
    rbo: Spread | None
    tau: Spread | None
    same_first: float | None  # share
    live_ms: Latency
    other_ms: Latency | None


@dataclass(frozen=True)
class ShadowSummary:
    """What a file of comparisons says, by pair of providers; None where nothing was measured.

    `count` and `errors` are of all pairs; `dropped` were given up, `broken` lines are half ones,
    of killed processes.
    """

    count: int
    errors: dict[str, int]
    dropped: int
    broken: int
    pairs: list[Pair]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Lines:
    """What the lines so far hold of one pair."""

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

    def pair(self, live: str, other: str) -> Pair:
        same_first = self.measures["same_first"]
        return Pair(
            live,
            other,
            count=len(same_first),
            errors=dict(self.errors.most_common()),
            overlap=_spread(self.measures["overlap"]),
            rbo=_spread(self.measures["rbo"]),
            tau=_spread(self.measures["tau"]),
            same_first=float(np.mean(same_first)) if same_first else None,
            live_ms=_latency(self.live_ms),
            other_ms=_latency(self.other_ms) if self.other_ms else None,
        )


@dataclass
class _Read:
    """What the lines so far hold."""

    dropped: int = 0
    broken: int = 0
    pairs: dict[Names, _Lines] = field(default_factory=dict)

    def add(self, line: dict[str, Any]) -> None:
        """Raises KeyError, TypeError, ValueError: not a line of ours."""
        if line["kind"] == "dropped":
            self.dropped += int(line["count"])
        elif line["kind"] == "comparison":
            names = str(line["live"]), str(line["other"])
            self.pairs.setdefault(names, _Lines()).add(line)
        else:
            raise ValueError("another kind")


def summarize(path: str | os.PathLike[str]) -> ShadowSummary:
    """What the file that a `Shadow` wrote says; half lines are skipped and counted.

    Raises:
        ConfigurationError: a line is of something else; names it, counted from 1.
        OSError: the file cannot be read.
    """
    read = _read(Path(path))
    pairs = [lines.pair(*names) for names, lines in sorted(read.pairs.items())]
    errors = sum((lines.errors for lines in read.pairs.values()), Counter[str]())
    return ShadowSummary(
        count=sum(pair.count for pair in pairs),
        errors=dict(errors.most_common()),
        dropped=read.dropped,
        broken=read.broken,
        pairs=pairs,
    )


def _read(path: Path) -> _Read:
    read = _Read()
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.isspace():
                continue  # two processes at once saw half a line
            try:
                line = _parsed(raw)
                if line is None:
                    read.broken += 1
                else:
                    read.add(line)
            except (KeyError, TypeError, ValueError, OverflowError):
                raise ConfigurationError(
                    f"{path}, line {number}, was not written by a `Shadow`"
                ) from None
    return read


def _parsed(raw: bytes) -> Any:
    """None: it is half of a line of ours. Raises ValueError: no JSON, and not ours."""
    try:
        return strict_json.loads(raw)
    except ValueError:
        if START.startswith(raw.rstrip(b"\n")[: len(START)]):
            return None
        raise


def _finite(value: Any) -> float:
    """Raises TypeError, ValueError, OverflowError: it is no such number."""
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
