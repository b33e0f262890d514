"""Runs of systems with given rankings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bge_retrieval.evaluation import Answer, Price, Run, System, Timed

UNKNOWN = Price()


def make_run(
    name: str,
    rankings: Mapping[str, Sequence[str]],
    *,
    seconds: Sequence[float] = (0.05,),
    score: float = 1.0,
    price: Price = UNKNOWN,
    about: dict[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
) -> Run:
    """Build a run. Each query took 10 ms of model time and 8 tokens; all scores are equal."""
    answers = {
        query_id: Timed(
            Answer([(document_id, score) for document_id in ranking], 0.010, 8),
            seconds[index % len(seconds)],
        )
        for index, (query_id, ranking) in enumerate(rankings.items())
    }
    system = System(name, lambda _: Answer([], 0.0), price, about or {})
    return Run(
        system,
        dict(texts or {query_id: f"text of {query_id}" for query_id in rankings}),
        answers,
    )


def run_with_hits(
    hits: int, queries: int = 20, **options: Any
) -> tuple[Run, dict[str, dict[str, int]]]:
    """Build a run that ranks the relevant document first for `hits` queries and finds no other."""
    names = [f"q{number}" for number in range(queries)]
    rankings = {query_id: ["d"] if index < hits else [] for index, query_id in enumerate(names)}
    return make_run(options.pop("name", "bge"), rankings, **options), {
        query_id: {"d": 1} for query_id in names
    }
