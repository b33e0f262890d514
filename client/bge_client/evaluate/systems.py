"""Systems that search, and what each of them answers to the same queries."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import NamedTuple

from ..errors import BGEError, ConfigurationError, ProtocolError
from .dataset import SEED

BUSY = (
    "A price by the second is of the worker's busy time alone; a worker that scales to zero adds "
    "up to its idle timeout (5 s by default) and a cold start now and then"
)


@dataclass(frozen=True)
class Price:
    """Dollars for a second of a worker, and for a million tokens; of neither, it is not known."""

    per_second: float | None = None
    per_million_tokens: float | None = None

    def __post_init__(self) -> None:
        for name, dollars in asdict(self).items():
            if dollars is not None and not 0 <= dollars < math.inf:
                raise ConfigurationError(f"`{name}` must be 0 or more dollars. Given: {dollars}")

    @property
    def about(self) -> dict[str, str | int | float]:
        """For the report."""
        prices = {"$ a second": self.per_second, "$ a million tokens": self.per_million_tokens}
        return {name: dollars for name, dollars in prices.items() if dollars is not None}

    def per_thousand_queries(self, model_seconds: float, tokens: float) -> float | None:
        """Dollars for 1,000 queries that take so much each.

        By the second it is the worker's busy time alone; see `BUSY`.
        """
        if self.per_second is None and self.per_million_tokens is None:
            return None
        time_cost = 1_000 * model_seconds * (self.per_second or 0)
        return time_cost + tokens / 1_000 * (self.per_million_tokens or 0)


class Answer(NamedTuple):
    """What a system found for one query."""

    ranking: list[tuple[str, float]]  # document id and score, best first
    model_seconds: float  # of them, those spent waiting for vectors and scores
    tokens: int = 0


@dataclass(frozen=True)
class System:
    """One way to search: `search` takes a query's text. `about` goes into the report as it is."""

    name: str
    search: Callable[[str], Answer]
    price: Price
    about: dict[str, str | int | float] = field(default_factory=dict)


class Timed(NamedTuple):
    """An answer, and the seconds from the question to it."""

    answer: Answer
    seconds: float


@dataclass(frozen=True)
class Run:
    """What a system answered to each query."""

    system: System
    queries: dict[str, str]
    depth: int
    answers: dict[str, Timed]  # by query id

    @property
    def name(self) -> str:
        return self.system.name


def no_progress() -> None:
    """The progress nobody watches."""


def run_all(
    systems: Sequence[System],
    queries: Mapping[str, str],
    *,
    depth: int = 100,
    warmup: int = 3,
    progress: Callable[[], object] = no_progress,
) -> list[Run]:
    """Ask every system every query, one at a time, and time it.

    Each query goes to all systems before the next does, in an order drawn anew (the same in every
    run): whatever slows the machine or the network meanwhile slows them alike. The first `warmup`
    queries are asked once more beforehand, which is not measured. `progress` is called after each
    answer.

    Raises:
        ConfigurationError: no query, no system, or two of one name.
        BGEError: of a system; its message begins with the names of the system and the query.
        ProtocolError: a ranking is longer than `depth`, names a document twice, or has a score
            that is no number.
    """
    check_names([system.name for system in systems])
    if not queries:
        raise ConfigurationError("`queries` must hold at least one query")
    if depth < 1:
        raise ConfigurationError(f"`depth` must be at least 1. Given: {depth}")
    for system in systems:
        for query_id, text in islice(queries.items(), max(warmup, 0)):
            _timed(system, query_id, text)
    answers: dict[str, dict[str, Timed]] = {system.name: {} for system in systems}
    rng = random.Random(SEED)
    for query_id, text in queries.items():
        for system in rng.sample(systems, len(systems)):
            timed = _timed(system, query_id, text)
            _check_ranking(timed.answer.ranking, depth, _location(system, query_id))
            answers[system.name][query_id] = timed
            progress()
    return [Run(system, dict(queries), depth, answers[system.name]) for system in systems]


def check_names(names: Sequence[str]) -> None:
    if not names:
        raise ConfigurationError("there must be at least one system")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ConfigurationError(f"each system must have its own name. Given: {count} × {name!r}")


def _location(system: System, query_id: str) -> str:
    return f"`{system.name}`, query {query_id!r}:"


def _timed(system: System, query_id: str, text: str) -> Timed:
    start = time.perf_counter()
    try:
        answer = system.search(text)
    except BGEError as error:
        error.args = (f"{_location(system, query_id)} {error}",)  # the rest of it stays as it is
        raise
    return Timed(answer, time.perf_counter() - start)


def _check_ranking(ranking: Sequence[tuple[str, float]], depth: int, location: str) -> None:
    if len(ranking) > depth:
        raise ProtocolError(
            f"{location} at most {depth} documents were asked. Given: {len(ranking)}"
        )
    seen = set()
    for document_id, score in ranking:
        if document_id in seen:
            raise ProtocolError(f"{location} document {document_id!r} is ranked twice")
        if not math.isfinite(score):
            raise ProtocolError(f"{location} document {document_id!r} has the score {score}")
        seen.add(document_id)
