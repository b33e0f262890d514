"""When requests arrive, and how many tokens they have."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .cards import PlanError
from .scenario import Bulk, Bursts, Day, Poisson, Requests, Timed, Traffic

HOUR, DAY = 3600.0, 86_400.0
MAX_REQUESTS = 5_000_000
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Arrivals:
    """Requests in the order of their arrival: arrays of equal lengths.

    `times` are seconds since the first midnight, `tokens` those of all texts of a request.
    """

    times: Array
    tokens: Array
    is_rerank: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.times)


def generate(traffic: Sequence[Traffic], days: int, seed: int) -> Arrivals:
    """Return the requests of `days` days. Equal seeds give equal requests.

    Raises PlanError: there are too many, or a CSV file cannot be used.
    """
    rng = np.random.default_rng(seed)
    times, tokens, is_rerank = [np.empty(0)], [np.empty(0)], [np.empty(0, bool)]
    for part in traffic:
        part_times, part_tokens = recorded(part, days) if isinstance(part, Day) else (None, None)
        if part_times is None:
            part_times = moments(part, days, rng, seed)
        if part_tokens is None:
            part_tokens = sizes(part, len(part_times), rng)
        times.append(part_times)
        tokens.append(part_tokens)
        is_rerank.append(np.full(len(part_times), part.task == "rerank"))
        check_count(sum(map(len, times)))
    order = np.argsort(all_times := np.concatenate(times), kind="stable")
    return Arrivals(
        all_times[order], np.concatenate(tokens)[order], np.concatenate(is_rerank)[order]
    )


def check_count(requests: float) -> None:
    if requests > MAX_REQUESTS:
        raise PlanError(
            f"`traffic` must have at most {MAX_REQUESTS:,} requests. Given: about {requests:,.0f}"
        )


def sizes(requests: Requests, count: int, rng: np.random.Generator) -> Array:
    """Tokens of requests. A text's are gamma distributed, so those of several texts are too."""
    mean = requests.texts * requests.tokens
    if not requests.variation:
        return np.full(count, mean)
    shape = requests.texts / requests.variation**2
    return np.maximum(rng.gamma(shape, mean / shape, count), 1.0)


def moments(part: Traffic, days: int, rng: np.random.Generator, seed: int) -> Array:
    match part:
        case Poisson():
            return poisson(part, part.per_minute / 60, days, rng)
        case Bursts():
            start, end = part.hours
            of_event = np.random.default_rng([seed, *part.event.encode()]) if part.event else rng
            starts = poisson(part, part.per_day / (end - start) / HOUR, days, of_event)
            check_count(len(starts) * part.requests)
            offsets = rng.uniform(0, part.seconds, (len(starts), part.requests))
            return (starts[:, None] + offsets).ravel()
        case Bulk():
            return np.full(part.requests, part.hour * HOUR)
    raise AssertionError(part)


def poisson(shape: Timed, per_second: float, days: int, rng: np.random.Generator) -> Array:
    """Return random moments: `per_second` within the hours of `shape`, fewer outside them."""
    start, end = (hour * HOUR for hour in shape.hours)
    pieces = [(0.0, start, shape.at_night), (start, end, 1.0), (end, DAY, shape.at_night)]
    check_count(per_second * DAY * days)
    times = [np.empty(0)]
    for day in range(days):
        weekend = shape.at_weekends if day % 7 >= 5 else 1.0
        for begin, until, share in pieces:
            count = rng.poisson(per_second * share * weekend * (until - begin))
            times.append(day * DAY + rng.uniform(begin, until, count))
    return np.concatenate(times)


def recorded(part: Day, days: int) -> tuple[Array, Array | None]:
    """Return times and, if the file has them, tokens of a recorded day's requests, on each day.

    Raises PlanError: the file is missing, has no column `seconds`, or has another value in a row.
    """
    path = Path(part.file)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        seconds = np.array([float(row["seconds"]) for row in rows])
        tokens = np.array([float(row["tokens"]) for row in rows if "tokens" in row])
    except OSError as error:
        raise PlanError(f"{path.name}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError):
        raise PlanError(
            f"{path.name} must have a number in the column `seconds`, and in `tokens` if it has one"
        ) from None
    valid = np.all((seconds >= 0) & (seconds < DAY)) and np.all((tokens > 0) & (tokens < 1e9))
    if not valid:  # also if a number is not finite
        raise PlanError(f"{path.name}: `seconds` must be 0 to 86400, `tokens` above 0")
    check_count(len(seconds) * days)
    times = np.concatenate([seconds + day * DAY for day in range(days)])
    return times, np.tile(tokens, days) if len(tokens) else None
