"""How far the rankings of two systems agree, which needs no judgements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..agreement import agreement
from ..verdict import ROUNDING
from .systems import Run

DEPTH = 10  # documents compared
SHOWN_DOCUMENTS = 5
SHOWN_QUERIES = 10


@dataclass(frozen=True)
class QueryAgreement:
    """A query's rankings, compared down to `DEPTH`, and their first documents."""

    query_id: str
    overlap: float
    rbo: float
    tau: float | None  # None if fewer than two documents are common
    baseline: list[str]
    candidate: list[str]


@dataclass(frozen=True)
class RankingAgreement:
    """Means over the queries, and the queries whose rankings agree least."""

    overlap: float
    rbo: float
    tau: float | None  # of the queries that have one
    same_first: float  # the share of queries
    least: list[QueryAgreement]  # by RBO; none whose rankings are equal


def ranking_agreement(base: Run, candidate: Run, ids: Sequence[str]) -> RankingAgreement:
    """Compare the rankings of the queries `ids`."""
    queries = [_query_agreement(base, candidate, query_id) for query_id in ids]
    taus = [query.tau for query in queries if query.tau is not None]
    differing = [query for query in queries if query.rbo < 1 - ROUNDING]
    return RankingAgreement(
        overlap=float(np.mean([query.overlap for query in queries])),
        rbo=float(np.mean([query.rbo for query in queries])),
        tau=float(np.mean(taus)) if taus else None,
        same_first=float(np.mean([q.baseline[:1] == q.candidate[:1] for q in queries])),
        least=sorted(differing, key=lambda query: query.rbo)[:SHOWN_QUERIES],
    )


def _query_agreement(base: Run, candidate: Run, query_id: str) -> QueryAgreement:
    first, second = (
        [document_id for document_id, _ in run.answers[query_id].answer.ranking]
        for run in (base, candidate)
    )
    measured = agreement(first, second, DEPTH)
    return QueryAgreement(
        query_id,
        overlap=measured.overlap or 0.0,
        rbo=measured.rbo,
        tau=measured.tau,
        baseline=first[:SHOWN_DOCUMENTS],
        candidate=second[:SHOWN_DOCUMENTS],
    )
