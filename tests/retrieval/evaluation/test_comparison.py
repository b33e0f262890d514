"""Metrics against a reference, statistics on random data, and the limits of the verdict."""

from __future__ import annotations

import math
import re
import tracemalloc
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bge_client.errors import ConfigurationError
from bge_retrieval.evaluation import Measured, Run, Thresholds, compare, comparison, statistics
from bge_retrieval.evaluation.statistics import holm, interval, paired_p
from runs import make_run, run_with_hits


def reference_metrics(
    ranking: Sequence[str], grades: Mapping[str, int], k: int = 10
) -> dict[str, float]:
    gains = [max(0, grades.get(document_id, 0)) for document_id in ranking]

    def dcg(gains: Sequence[int]) -> float:
        return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains[:k]))

    ideal = dcg(sorted((max(0, grade) for grade in grades.values()), reverse=True))
    relevant = sum(grade >= 1 for grade in grades.values())
    return {
        f"nDCG@{k}": dcg(gains) / ideal if ideal else 0.0,
        f"MRR@{k}": next((1 / rank for rank, gain in enumerate(gains[:k], 1) if gain), 0.0),
        "recall@100": sum(gain >= 1 for gain in gains[:100]) / relevant if relevant else 0.0,
    }


def compute_metrics(ranking: Sequence[str], grades: dict[str, int]) -> dict[str, float]:
    return compare([make_run("a", {"q": ranking})], {"q": grades}, "a").systems[0].means


WIKIPEDIA = {"D1": 3, "D2": 2, "D3": 3, "D4": 0, "D5": 1, "D6": 2, "D7": 3, "D8": 2}


def test_ndcg_matches_wikipedia_with_linear_gain() -> None:
    """en.wikipedia.org/wiki/Discounted_cumulative_gain: 0.785 with linear gain."""
    ranking = ["D1", "D2", "D3", "D4", "D5", "D6"]
    assert reference_metrics(ranking, WIKIPEDIA, k=6)["nDCG@6"] == pytest.approx(0.785, abs=5e-4)
    assert compute_metrics(ranking, WIKIPEDIA) == pytest.approx(
        reference_metrics(ranking, WIKIPEDIA)
    )


def test_mrr_matches_wikipedia() -> None:
    """en.wikipedia.org/wiki/Mean_reciprocal_rank: ranks 3, 2 and 1 give 11/18."""
    rankings = {
        "cat": ["catten", "cati", "cats"],
        "torus": ["torii", "tori", "toruses"],
        "virus": ["viruses", "virii", "viri"],
    }
    qrels = {"cat": {"cats": 1}, "torus": {"tori": 1}, "virus": {"viruses": 1}}
    means = compare([make_run("a", rankings)], qrels, "a").systems[0].means
    assert means["MRR@10"] == pytest.approx(11 / 18)


DOCUMENTS = [f"d{number}" for number in range(130)]


@settings(max_examples=60, deadline=None)
@given(
    ranking=st.lists(st.sampled_from(DOCUMENTS), unique=True, max_size=100),
    grades=st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(-1, 4), min_size=1),
)
def test_metrics_match_the_reference(ranking: list[str], grades: dict[str, int]) -> None:
    assert compute_metrics(ranking, grades) == pytest.approx(reference_metrics(ranking, grades))


def test_recall_counts_100_results_and_mrr_10() -> None:
    means = compute_metrics([f"x{number}" for number in range(99)] + ["a", "b"], {"a": 1, "b": 1})
    assert means == {"nDCG@10": 0, "MRR@10": 0, "recall@100": 0.5}


def test_equal_scores_keep_the_order_of_the_ranking() -> None:
    for ranking, rank in ((["a", "z"], 1), (["z", "a"], 2)):
        assert compute_metrics(ranking, {"a": 1})["MRR@10"] == 1 / rank


def test_a_query_that_finds_nothing_counts_zero() -> None:
    run, qrels = run_with_hits(5)
    assert set(compare([run], qrels, "bge").systems[0].means.values()) == {0.25}
    run, qrels = run_with_hits(0)
    assert set(compare([run], qrels, "bge").systems[0].means.values()) == {0.0}


@pytest.mark.parametrize(
    ("runs", "qrels", "baseline", "message"),
    [
        ([make_run("a", {"q": []})], {"q": {"d": 1}}, "b", "must be one of a. Given: 'b'"),
        ([make_run("a", {"q": []})] * 2, {"q": {"d": 1}}, "a", "a unique name. Given: 2 × 'a'"),
        ([make_run("a", {"q": []})], {"r": {"d": 1}}, "a", "query 'r' is judged, but 'a' has no"),
        ([make_run("a", {"q": []})], {}, "a", "`qrels` must judge at least one query"),
        (
            [make_run("a", {"q": []}), make_run("b", {"q": [], "r": []})],
            {"q": {"d": 1}},
            "a",
            "'b' and 'a' must have the same queries",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    runs: list[Run], qrels: dict[str, dict[str, int]], baseline: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        compare(runs, qrels, baseline)


def test_p_is_uniform_under_the_null_hypothesis() -> None:
    rng = np.random.default_rng(1)
    ps = [paired_p(rng.normal(0, 1, 30)) for _ in range(300)]
    low, high = stats.binom.interval(0.999, len(ps), 0.05)
    assert low <= sum(p < 0.05 for p in ps) <= high
    assert stats.kstest(ps, "uniform").pvalue > 0.01


def test_a_real_effect_is_found() -> None:
    rng = np.random.default_rng(2)
    assert sum(paired_p(rng.normal(0.8, 1, 30)) < 0.05 for _ in range(60)) >= 56


def test_p_is_exact_for_few_queries_and_ignores_ties() -> None:
    # Of the eight combinations of three signs, two are as extreme as this one.
    assert paired_p(np.array([1.0, 0.5, 0.2])) == pytest.approx(2 / 8)
    assert paired_p(np.array([1.0, 0.0, 0.5, 0.2, 0.0])) == pytest.approx(2 / 8)
    assert paired_p(np.array([0.0, 0.3])) == paired_p(np.zeros(5)) == 1


def test_the_interval_covers_the_true_mean_in_95_of_100_samples() -> None:
    """Neither too narrow nor too wide."""
    rng = np.random.default_rng(3)
    intervals = np.array([interval(rng.normal(0.1, 1, 100)) for _ in range(200)])
    low, high = intervals.T
    minimum, maximum = stats.binom.interval(0.999, 200, 0.95)
    assert minimum <= ((low <= 0.1) & (high >= 0.1)).sum() <= maximum
    # It misses equally often on both sides, and is as wide as the t interval.
    minimum, maximum = stats.binom.interval(0.999, 200, 0.025)
    assert minimum <= (low > 0.1).sum() <= maximum
    assert minimum <= (high < 0.1).sum() <= maximum
    assert (high - low).mean() == pytest.approx(2 * 1.96 / math.sqrt(100), rel=0.03)


def test_statistics_of_thousands_of_queries_need_little_memory() -> None:
    gaps = np.random.default_rng(5).normal(0, 1, 4_000)
    tracemalloc.start()
    interval(gaps)
    paired_p(gaps)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * statistics.BATCH * gaps.nbytes  # without batches about five times that


def test_of_a_single_query_the_interval_is_a_point() -> None:
    assert interval(np.array([0.25])) == (0.25, 0.25)


def test_holm_correction_equals_that_of_r() -> None:
    """`p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")`"""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_p_is_corrected_for_all_metrics_and_candidates() -> None:
    base, qrels = run_with_hits(20, name="base")
    worse_run, _ = run_with_hits(13, name="worse")
    same_run, _ = run_with_hits(20, name="same")
    comparisons = compare([base, worse_run, same_run], qrels, "base").comparisons
    worse, same = (item.differences["MRR@10"] for item in comparisons)
    assert (worse.wins, worse.losses, worse.ties) == (0, 7, 13)
    assert worse.p == pytest.approx(2 / 2**7)
    assert {item.p_holm for item in comparisons[0].differences.values()} == {6 * worse.p}
    assert (same.p, same.p_holm, same.low, same.high) == (1, 1, 0, 0)
    assert worse.mean == pytest.approx(-0.35)
    assert worse.low < worse.mean < worse.high < 0


def test_holm_limits_false_positives_to_5_percent_of_reports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two candidates as good as the baseline; two of the three metrics are correlated."""
    monkeypatch.setattr(comparison, "interval", lambda gaps: (0.0, 0.0))
    rng = np.random.default_rng(4)

    def system(name: str) -> Measured:
        first, second = rng.normal(0.5, 0.1, (2, 30))
        values = {"nDCG@10": first, "MRR@10": first + rng.normal(0, 0.05, 30), "recall@100": second}
        scores = {
            metric: {str(query): float(value) for query, value in enumerate(metric_values)}
            for metric, metric_values in values.items()
        }
        return Measured(name, {}, dict.fromkeys(scores, 0.5), scores, 1, 1, 1, 1, None)

    false_positives = 0
    for _ in range(300):
        base, *candidates = (system(name) for name in ("base", "one", "two"))
        differences = comparison._differences(base, candidates)
        false_positives += any(
            difference.p_holm < 0.05
            for by_metric in differences
            for difference in by_metric.values()
        )
    _, maximum = stats.binom.interval(0.999, 300, 0.05)
    assert 1 <= false_positives <= maximum  # without a correction about 60


@pytest.mark.parametrize(
    ("hits", "seconds", "failed"),
    [
        (19, [0.0999], []),  # 95 % of each
        (18, [0.05], ["recall@100"]),  # 90 %, enough for the other two
        (17, [0.05], ["nDCG@10", "MRR@10", "recall@100"]),
        (20, [0.1], ["p50"]),
        (20, [0.05] * 19 + [3.0], ["p99"]),
        (20, [0.5], ["p50", "p99"]),
    ],
)
def test_a_candidate_passes_up_to_the_thresholds(
    hits: int, seconds: list[float], failed: list[str]
) -> None:
    base, qrels = run_with_hits(20, name="jina", seconds=[9.0])
    candidate, _ = run_with_hits(hits, seconds=seconds)
    (comparison,) = compare([base, candidate], qrels, "jina").comparisons
    verdict = comparison.verdict
    assert [check.name for check in verdict.checks if not check.passed] == failed
    assert verdict.outcome == ("fail" if failed else "pass")
    assert (f"falls short in {len(failed)} of 5" if failed else "passes all 5") in verdict.sentence


def test_of_fewer_than_twenty_queries_there_is_no_verdict() -> None:
    base, qrels = run_with_hits(19, 19, name="jina")
    candidate, _ = run_with_hits(19, 19)
    (comparison,) = compare([base, candidate], qrels, "jina").comparisons
    assert comparison.verdict.outcome == "too few queries"
    assert comparison.verdict.sentence.startswith("19 queries are too few for a verdict")
    assert all(check.passed for check in comparison.verdict.checks)


def test_a_baseline_with_zero_metrics_fails_every_candidate() -> None:
    base, qrels = run_with_hits(0, name="jina")
    candidate, _ = run_with_hits(20)
    (comparison,) = compare([base, candidate], qrels, "jina").comparisons
    assert comparison.verdict.outcome == "fail"
    assert "nDCG@10 cannot be compared, because jina has 0" in comparison.verdict.sentence


def test_the_verdict_names_intervals_that_reach_below_a_threshold() -> None:
    base, qrels = run_with_hits(20, name="jina")
    candidate, _ = run_with_hits(19)
    (compared,) = compare([base, candidate], qrels, "jina").comparisons
    assert compared.verdict.outcome == "pass"
    low = compared.differences["recall@100"].low_ratio
    assert low is not None
    assert low < 0.90
    assert compared.verdict.sentence.endswith(
        f"This is uncertain: the 95% interval includes nDCG@10 down to {low:.1%}, "
        f"MRR@10 down to {low:.1%}, recall@100 down to {low:.1%}."
    )
    perfect, _ = run_with_hits(20)
    (compared,) = compare([base, perfect], qrels, "jina").comparisons
    assert "uncertain" not in compared.verdict.sentence


def test_a_narrow_failure_is_shown_with_enough_decimals() -> None:
    base, qrels = run_with_hits(20, name="jina")
    candidate, _ = run_with_hits(20, seconds=[0.100004])
    (comparison,) = compare([base, candidate], qrels, "jina", Thresholds(ndcg=1.1)).comparisons
    assert "100.0% of jina's nDCG@10 (required: at least 110%)" in comparison.verdict.sentence
    assert "p50 100.004 ms (required: below 100 ms)" in comparison.verdict.sentence
