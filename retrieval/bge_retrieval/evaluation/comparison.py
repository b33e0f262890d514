"""Metrics of several runs, the significance of their differences, and a verdict.

Without judgements, there is only the agreement of the rankings.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

import ir_measures
import numpy as np

from bge_client import ConfigurationError, __version__

from ..verdict import P50_MS, P99_MS, Check, Verdict, judge
from .agreement import RankingAgreement, ranking_agreement
from .dataset import RELEVANT
from .statistics import Values, holm, interval, paired_p
from .systems import DEPTH, Run, check_names

Qrels = Mapping[str, Mapping[str, int]]  # query id → document id → grade

METRICS = {  # as in trec_eval and MS MARCO; the gain of nDCG is linear in the grade
    "nDCG@10": ir_measures.nDCG @ 10,
    "MRR@10": ir_measures.RR(rel=RELEVANT) @ 10,
    "recall@100": ir_measures.R(rel=RELEVANT) @ 100,
}


@dataclass(frozen=True)
class Thresholds:
    """Minimum ratios of a candidate's metrics to the baseline's, and limits of its latency."""

    ndcg: float = 0.90
    mrr: float = 0.90
    recall: float = 0.95
    p50_ms: float = P50_MS
    p99_ms: float = P99_MS

    def ratios(self) -> dict[str, float]:
        """Return the minimum ratio for each metric."""
        return dict(zip(METRICS, (self.ndcg, self.mrr, self.recall), strict=True))


DEFAULTS = Thresholds()


@dataclass(frozen=True)
class Measured:
    """The metrics, latency and cost of one system."""

    name: str
    about: dict[str, str | int | float]
    means: dict[str, float]  # by metric; empty without judgements
    scores: dict[str, dict[str, float]]  # by metric, then by query id
    p50_ms: float
    p99_ms: float
    model_ms: float  # mean
    tokens: float  # mean
    cost: float | None  # dollars for 1,000 queries; see BUSY


@dataclass(frozen=True)
class Difference:
    """The difference between a candidate and the baseline in one metric."""

    ratio: float | None  # of the means; None if the baseline's mean is 0
    mean: float
    low: float  # of the 95% interval of the mean
    high: float
    p: float  # of the paired randomization test
    p_holm: float  # corrected for the number of metrics and candidates
    wins: int  # queries on which the candidate is better
    losses: int
    ties: int
    low_ratio: float | None  # like `ratio`, at the low end of the interval


@dataclass(frozen=True)
class Comparison:
    """A candidate compared with the baseline. Without judgements, only their rankings are."""

    name: str
    agreement: RankingAgreement
    differences: dict[str, Difference]  # by metric
    verdict: Verdict | None


@dataclass(frozen=True)
class Report:
    """The comparison of several runs. `report.py` renders it."""

    baseline: str
    systems: list[Measured]  # including the baseline
    comparisons: list[Comparison]  # one for each candidate
    thresholds: Thresholds
    queries: dict[str, str]
    drawn_from: int  # the number of judged queries in the dataset
    left_out: int  # queries without a relevant document, which were not run
    depth: int
    date: str  # UTC
    versions: dict[str, str]

    @property
    def is_judged(self) -> bool:
        return any(system.means for system in self.systems)

    def as_dict(self) -> dict[str, object]:
        """Return the report as JSON-serializable values."""
        return asdict(self)

    def system(self, name: str) -> Measured:
        return next(system for system in self.systems if system.name == name)


def compare(
    runs: Sequence[Run],
    qrels: Qrels | None,
    baseline: str,
    thresholds: Thresholds = DEFAULTS,
    *,
    drawn_from: int | None = None,
    left_out: int = 0,
) -> Report:
    """Compute the metrics of each run over the queries of `qrels`, and compare with `baseline`.

    A query without results counts 0. Queries that are not in `qrels` are ignored. With `qrels`
    None, all queries count, and there are neither metrics nor verdicts. The report includes
    `drawn_from`, the number of queries from which these were drawn, and `left_out`, the number of
    queries without a relevant document.

    Raises:
        ConfigurationError: the runs do not match each other or the judgements.
    """
    ids = _query_ids(runs, qrels, baseline)
    systems = [_system_metrics(run, qrels, ids) for run in runs]
    by_name = {run.name: run for run in runs}
    (base,) = (system for system in systems if system.name == baseline)
    candidates = [system for system in systems if system is not base]
    comparisons = []
    for candidate, differences in zip(candidates, _differences(base, candidates), strict=True):
        agreement = ranking_agreement(by_name[baseline], by_name[candidate.name], ids)
        verdict = None
        if qrels is not None:
            checks = _checks(candidate, differences, thresholds, baseline)
            verdict = judge(candidate.name, checks, len(ids))
        comparisons.append(Comparison(candidate.name, agreement, differences, verdict))
    return Report(
        baseline,
        systems,
        comparisons,
        thresholds,
        queries={query_id: runs[0].queries[query_id] for query_id in ids},
        drawn_from=len(ids) if drawn_from is None else drawn_from,
        left_out=left_out,
        depth=DEPTH,
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        versions={"python": platform.python_version(), "bge-client": __version__}
        | {name: version(name) for name in ("ir-measures", "numpy", "scipy")},
    )


def _query_ids(runs: Sequence[Run], qrels: Qrels | None, baseline: str) -> list[str]:
    """Check the runs. Return the ids of the queries that count, in the order of the runs."""
    names = [run.name for run in runs]
    check_names(names)
    if baseline not in names:
        raise ConfigurationError(
            f"`baseline` must be one of {', '.join(names)}. Given: {baseline!r}"
        )
    if qrels is not None and not qrels:
        raise ConfigurationError("`qrels` must judge at least one query")
    first = runs[0]
    for run in runs:
        if run.queries != first.queries:
            raise ConfigurationError(f"{run.name!r} and {first.name!r} must have the same queries")
        judged = qrels or {}
        missing = next((query_id for query_id in judged if query_id not in run.answers), None)
        if missing is not None:
            raise ConfigurationError(f"query {missing!r} is judged, but {run.name!r} has no answer")
    return [query_id for query_id in first.queries if qrels is None or query_id in qrels]


def _system_metrics(run: Run, qrels: Qrels | None, ids: Sequence[str]) -> Measured:
    scores = {} if qrels is None else _scores(run, qrels, ids)
    answers = [run.answers[query_id] for query_id in ids]
    p50, p99 = np.percentile([timed.seconds for timed in answers], (50, 99))
    model_seconds = float(np.mean([timed.answer.model_seconds for timed in answers]))
    tokens = float(np.mean([timed.answer.tokens for timed in answers]))
    return Measured(
        run.name,
        {**run.system.about, **run.system.price.about},
        {metric: float(np.mean([*values.values()])) for metric, values in scores.items()},
        scores,
        p50_ms=float(p50) * 1e3,
        p99_ms=float(p99) * 1e3,
        model_ms=model_seconds * 1e3,
        tokens=tokens,
        cost=run.system.price.per_thousand_queries(model_seconds, tokens),
    )


def _scores(run: Run, qrels: Qrels, ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return scores by metric and query id. Queries that the evaluator omits score 0."""
    judged = {query_id: dict(qrels[query_id]) for query_id in ids}
    # trec_eval breaks ties by document id. The negated rank replaces the score, so that it
    # evaluates the order that a user would see.
    ranked = {
        query_id: {
            document_id: -float(index)
            for index, (document_id, _) in enumerate(run.answers[query_id].answer.ranking)
        }
        for query_id in ids
    }
    names = {measure: name for name, measure in METRICS.items()}
    scores = {metric: dict.fromkeys(ids, 0.0) for metric in METRICS}
    for query_id, measure, value in ir_measures.iter_calc([*names], judged, ranked):
        scores[names[measure]][query_id] = float(value)
    return scores


def _differences(base: Measured, candidates: Sequence[Measured]) -> list[dict[str, Difference]]:
    """Return each candidate's differences by metric, with the p-values corrected together."""
    pairs = [(candidate, metric) for candidate in candidates for metric in base.means]
    gaps = [_gaps(candidate.scores[metric], base.scores[metric]) for candidate, metric in pairs]
    ps = [paired_p(gap) for gap in gaps]
    differences: dict[str, dict[str, Difference]] = {candidate.name: {} for candidate in candidates}
    for (candidate, metric), gap, p, p_holm in zip(pairs, gaps, ps, holm(ps), strict=True):
        base_mean = base.means[metric]
        low, high = interval(gap)
        differences[candidate.name][metric] = Difference(
            ratio=candidate.means[metric] / base_mean if base_mean else None,
            mean=float(gap.mean()),
            low=low,
            high=high,
            p=p,
            p_holm=p_holm,
            wins=int((gap > 0).sum()),
            losses=int((gap < 0).sum()),
            ties=int((gap == 0).sum()),
            low_ratio=(base_mean + low) / base_mean if base_mean else None,
        )
    return list(differences.values())


def _gaps(candidate: Mapping[str, float], base: Mapping[str, float]) -> Values:
    """Return the candidate's advantage for each query, rounded so that equal scores are ties."""
    gaps = [round(candidate[query_id] - value, 12) for query_id, value in base.items()]
    return np.array(gaps, np.float64)


# --------------------------------------------------------------------------------- checks


def _checks(
    candidate: Measured,
    differences: Mapping[str, Difference],
    thresholds: Thresholds,
    baseline: str,
) -> list[Check]:
    ratios = [
        Check(
            metric,
            "at least",
            minimum,
            differences[metric].ratio,
            low=differences[metric].low_ratio,
            baseline=baseline,
        )
        for metric, minimum in thresholds.ratios().items()
    ]
    return [
        *ratios,
        Check("p50", "below", thresholds.p50_ms, candidate.p50_ms, "ms"),
        Check("p99", "below", thresholds.p99_ms, candidate.p99_ms, "ms"),
    ]
