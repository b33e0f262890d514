"""Search systems, and their answers to the same queries."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import NamedTuple

from bge_client import BGEError, ConfigurationError, ProtocolError

from .dataset import SEED

BUSY = (
    "A price per second covers the worker's busy time only. A worker that scales to zero also "
    "costs its idle timeout (5 s by default) and occasional cold starts"
)


DEPTH = 100  # documents in a ranking
Ranking = list[tuple[str, float]]  # document ids and scores, best first


@dataclass(frozen=True)
class Price:
    """Dollars per worker second and per million tokens. With neither, the cost is unknown."""

    per_second: float | None = None
    per_million_tokens: float | None = None

    def __post_init__(self) -> None:
        for name, dollars in asdict(self).items():
            if dollars is not None and not 0 <= dollars < math.inf:
                raise ConfigurationError(f"`{name}` must be 0 or more dollars. Given: {dollars}")

    @property
    def about(self) -> dict[str, str | int | float]:
        """Return the prices by their names in the report."""
        prices = {"$ a second": self.per_second, "$ a million tokens": self.per_million_tokens}
        return {name: dollars for name, dollars in prices.items() if dollars is not None}

    def per_thousand_queries(self, model_seconds: float, tokens: float) -> float | None:
        """Return the dollars for 1,000 queries, given the means of one query. See `BUSY`."""
        if self.per_second is None and self.per_million_tokens is None:
            return None
        time_cost = 1_000 * model_seconds * (self.per_second or 0)
        return time_cost + tokens / 1_000 * (self.per_million_tokens or 0)


class Answer(NamedTuple):
    """The result of one query. `points` were returned, of which a document may have several."""

    ranking: Ranking
    model_seconds: float  # time spent waiting for vectors and scores
    tokens: int = 0
    points: int = 0


@dataclass(frozen=True)
class System:
    """A search system. `search` takes the text of a query; the report shows `about`."""

    name: str
    search: Callable[[str], Answer]
    price: Price
    about: dict[str, str | int | float] = field(default_factory=dict)


class Timed(NamedTuple):
    """An answer and its latency in seconds."""

    answer: Answer
    seconds: float


@dataclass(frozen=True)
class Run:
    """The answers of a system to all queries."""

    system: System
    queries: dict[str, str]
    answers: dict[str, Timed]  # by query id

    @property
    def name(self) -> str:
        return self.system.name


def run_all(
    systems: Sequence[System],
    queries: Mapping[str, str],
    *,
    warmup: int = 3,
    progress: Callable[[], object] = lambda: None,
) -> list[Run]:
    """Run and time every query on every system, one at a time.

    Each query runs on all systems before the next query, in a random but reproducible order, so
    that a slow machine or network affects all systems alike. The first `warmup` queries also run
    once beforehand, unmeasured. `progress` is called after each answer.

    Raises:
        ConfigurationError: there is no query or no system, or two systems have the same name.
        BGEError: a system failed. The message begins with the system and the query.
        ProtocolError: a ranking is longer than `DEPTH`, repeats a document, or has a score that
            is not finite.
    """
    check_names([system.name for system in systems])
    if not queries:
        raise ConfigurationError("`queries` must hold at least one query")
    for system in systems:
        for query_id, text in islice(queries.items(), max(warmup, 0)):
            _timed(system, query_id, text)
    answers: dict[str, dict[str, Timed]] = {system.name: {} for system in systems}
    rng = random.Random(SEED)
    for query_id, text in queries.items():
        for system in rng.sample(systems, len(systems)):
            timed = _timed(system, query_id, text)
            _check_ranking(timed.answer.ranking, _location(system, query_id))
            answers[system.name][query_id] = timed
            progress()
    return [Run(system, dict(queries), answers[system.name]) for system in systems]


def check_names(names: Sequence[str]) -> None:
    if not names:
        raise ConfigurationError("there must be at least one system")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ConfigurationError(f"each system must have a unique name. Given: {count} × {name!r}")


def _location(system: System, query_id: str) -> str:
    return f"`{system.name}`, query {query_id!r}:"


def _timed(system: System, query_id: str, text: str) -> Timed:
    start = time.perf_counter()
    try:
        answer = system.search(text)
    except BGEError as error:
        error.args = (f"{_location(system, query_id)} {error}",)  # keeps the other attributes
        raise
    return Timed(answer, time.perf_counter() - start)


def _check_ranking(ranking: Sequence[tuple[str, float]], location: str) -> None:
    if len(ranking) > DEPTH:
        raise ProtocolError(f"{location} more than {DEPTH} documents. Given: {len(ranking)}")
    seen = set()
    for document_id, score in ranking:
        if document_id in seen:
            raise ProtocolError(f"{location} document {document_id!r} is ranked twice")
        if not math.isfinite(score):
            raise ProtocolError(f"{location} document {document_id!r} has the score {score}")
        seen.add(document_id)


def check_document_ids(runs: Sequence[Run], document_ids: Collection[str], dataset: str) -> None:
    """Raises ConfigurationError if a system returns none of the dataset's ids, if it has any."""
    for run in runs:
        rankings = (timed.answer.ranking for timed in run.answers.values())
        returned = {document_id for ranking in rankings for document_id, _ in ranking}
        if returned and document_ids and returned.isdisjoint(document_ids):
            raise ConfigurationError(
                f"{run.name} returned no document of {dataset}. It returned {min(returned)!r}, "
                f"for example, and {dataset} has {min(document_ids)!r}: pass `--id-field` with "
                "the path of the id in a payload"
            )
