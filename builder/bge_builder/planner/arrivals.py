"""When requests arrive, and how many tokens they have."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from .cards import PlanError
from .scenario import Bulk, Bursts, Day, Generated, Poisson, Timed, Traffic

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
        if isinstance(part, Day):
            part_times, part_tokens = recorded(part, days)
        else:
            part_times = moments(part, days, rng, seed)
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


def sizes(requests: Generated, count: int, rng: np.random.Generator) -> Array:
    """Tokens of requests. A text's are gamma distributed, so those of several texts are too."""
    mean = requests.texts * requests.tokens
    if not requests.variation:
        return np.full(count, mean)
    shape = requests.texts / requests.variation**2
    return np.maximum(rng.gamma(shape, mean / shape, count), 1.0)


def moments(part: Poisson | Bursts | Bulk, days: int, rng: np.random.Generator, seed: int) -> Array:
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


def poisson(shape: Timed, per_second: float, days: int, rng: np.random.Generator) -> Array:
    """Return random moments: `per_second` within the hours of `shape`, fewer outside them."""
    start, end = (hour * HOUR for hour in shape.hours)
    pieces = [(0.0, start, shape.at_night), (start, end, 1.0), (end, DAY, shape.at_night)]
    check_count(days * per_second * sum((until - begin) * share for begin, until, share in pieces))
    times = []
    for day in range(days):
        weekend = shape.at_weekends if day % 7 >= 5 else 1.0
        for begin, until, share in pieces:
            count = rng.poisson(per_second * share * weekend * (until - begin))
            times.append(day * DAY + rng.uniform(begin, until, count))
    return np.concatenate(times)


class Row(msgspec.Struct):
    seconds: Annotated[float, Meta(ge=0, lt=86_400)]
    tokens: Annotated[float, Meta(gt=0, le=1e9)]


def recorded(part: Day, days: int) -> tuple[Array, Array]:
    """Return times and tokens of a recorded day's requests, on each day.

    Raises PlanError: the file is missing, is no CSV file, has no row, or a row is not valid.
    """
    path = Path(part.file)
    rows: list[Row] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            try:
                rows += (msgspec.convert(values, Row, strict=False) for values in reader)
            except (csv.Error, ValueError) as error:
                raise PlanError(f"{path.name}, line {reader.line_num}: {error}") from None
    except OSError as error:
        raise PlanError(f"{path.name}: {error.strerror}") from None
    if not rows:
        raise PlanError(f"{path.name} must have a line `seconds,tokens` and a row for each request")
    check_count(len(rows) * days)
    times = np.array([row.seconds for row in rows])
    tokens = np.array([row.tokens for row in rows])
    return np.concatenate([times + day * DAY for day in range(days)]), np.tile(tokens, days)
