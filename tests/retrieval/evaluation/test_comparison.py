"""Metrics against a reference, statistics on random data, and the limits of the verdict."""

from __future__ import annotations

import json
import math
import re
import time
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bge_client.errors import (
    BGEError,
    ConfigurationError,
    DeadlineError,
    HTTPStatusError,
    ProtocolError,
)
from bge_retrieval.evaluation import (
    Answer,
    Dataset,
    Measured,
    Price,
    Report,
    Run,
    System,
    Thresholds,
    Timed,
    compare,
    comparison,
    read_beir,
    report,
    run_all,
)
from bge_retrieval.evaluation.comparison import holm, interval, paired_p

UNKNOWN = Price()


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "RESAMPLES", 999)


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
        100,
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


# -------------------------------------------------------------------------------- metrics


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


# ------------------------------------------------------------------------------------ run


def test_each_query_goes_to_all_systems_in_a_random_order() -> None:
    calls: list[str] = []

    def system(name: str) -> System:
        def search(text: str) -> Answer:
            calls.append(name + text)
            time.sleep(0.002)
            return Answer([("d", 0.5)], 0.001, 3)

        return System(name, search, UNKNOWN)

    ticks: list[None] = []
    systems = [system("a"), system("b")]
    queries = {str(number): str(number) for number in range(40)}
    runs = run_all(systems, queries, warmup=1, progress=lambda: ticks.append(None))
    assert calls[:2] == ["a0", "b0"]
    turns = [calls[start : start + 2] for start in range(2, len(calls), 2)]
    assert [sorted(turn) for turn in turns] == [[f"a{run}", f"b{run}"] for run in queries]
    assert 10 <= sum(turn[0].startswith("a") for turn in turns) <= 30
    assert len(ticks) == 80
    assert [run.name for run in runs] == ["a", "b"]
    assert runs[1].answers["2"].answer == ([("d", 0.5)], 0.001, 3)
    assert all(0.002 <= timed.seconds < 2 for run in runs for timed in run.answers.values())
    first_calls = list(calls)
    calls.clear()
    run_all(systems, queries, warmup=1)
    assert calls == first_calls


@pytest.mark.parametrize(
    "error",
    [HTTPStatusError("the text", 503), DeadlineError("the text"), ProtocolError("the text")],
)
def test_a_failed_query_is_named_and_its_error_keeps_its_type(error: BGEError) -> None:
    def search(text: str) -> Answer:
        raise error

    with pytest.raises(type(error)) as caught:
        run_all([System("a", search, UNKNOWN)], {"q": "text"}, warmup=0)
    assert str(caught.value) == "`a`, query 'q': the text"
    assert caught.value is error
    assert error.retry == (type(error) is HTTPStatusError)


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        ([("d", 1.0), ("d", 0.5)], "`a`, query 'q': document 'd' is ranked twice"),
        ([("d", math.nan)], "document 'd' has the score nan"),
        ([("d", 1.0), ("e", 1.0), ("f", 1.0)], "more than 2 documents. Given: 3"),
    ],
)
def test_an_invalid_ranking_is_refused(ranking: list[tuple[str, float]], message: str) -> None:
    system = System("a", lambda _: Answer(ranking, 0.0), UNKNOWN)
    with pytest.raises(ProtocolError, match=re.escape(message)):
        run_all([system], {"q": "text"}, depth=2, warmup=0)


def test_cost_is_by_seconds_or_tokens_or_unknown() -> None:
    assert Price(per_second=0.0002).per_thousand_queries(0.05, 12) == pytest.approx(0.01)
    assert Price(per_million_tokens=0.02).per_thousand_queries(0.05, 12) == pytest.approx(0.00024)
    assert UNKNOWN.per_thousand_queries(0.05, 12) is None
    with pytest.raises(ConfigurationError, match="`per_second` must be 0 or more dollars"):
        Price(per_second=-1)


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


# ----------------------------------------------------------------------------- statistics


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


# -------------------------------------------------------------------------------- verdict


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


# ----------------------------------------------------------------------------------- BEIR


def write_beir(folder: Path, **changed: str | None) -> Path:
    """Write a dataset of two queries and two documents. A file that is None is omitted."""
    contents: dict[str, str | None] = {
        "corpus": '{"_id": "d1", "title": "Море", "text": "о море", "metadata": {"url": "u"}}\n'
        '{"_id": "d2", "title": "", "text": "о суше"}\n',
        "queries": '{"_id": "q1", "text": "море"}\n{"_id": "q2", "text": "суша"}\n',
        "qrels": "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n",
    }
    paths = {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "qrels": "qrels/test.tsv"}
    (folder / "qrels").mkdir()
    for name, content in (contents | changed).items():
        if content is not None:
            (folder / paths[name]).write_text(content, "utf-8")
    return folder


def test_a_beir_folder_is_read(tmp_path: Path) -> None:
    data = read_beir(write_beir(tmp_path))
    assert data.documents == {"d1", "d2"}
    assert data.queries == {"q1": "море"}
    assert data.qrels == {"q1": {"d1": 2, "d2": 0}}
    assert data.left_out == 1


def test_queries_are_drawn_deterministically_in_file_order() -> None:
    names = [f"q{number}" for number in range(100)]
    data = Dataset(frozenset("d"), dict.fromkeys(names, "text"), {name: {"d": 1} for name in names})
    drawn = [*data.draw(20)]
    assert drawn == sorted(drawn, key=names.index) == [*data.draw(20)]
    assert len(drawn) == 20
    assert drawn != names[:20]
    assert data.draw(None) == data.draw(100) == data.draw(101) == data.queries


def test_without_a_corpus_document_ids_are_not_checked(tmp_path: Path) -> None:
    qrels = "query-id\tcorpus-id\tscore\nq2\telsewhere\t1\n"
    data = read_beir(write_beir(tmp_path, corpus=None, qrels=qrels))
    assert data.documents == {"elsewhere"}
    assert data.qrels == {"q2": {"elsewhere": 1}}


HEADER = "query-id\tcorpus-id\tscore\n"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"queries": None}, "queries.jsonl cannot be read: No such file"),
        ({"qrels": None}, "test.tsv cannot be read: No such file"),
        ({"queries": "\n"}, "queries.jsonl is empty"),
        ({"queries": '{"_id": "q1", "text": "море"}\n\n{'}, "queries.jsonl, line 3, is not JSON"),
        ({"queries": '["q1"]'}, "line 1, must be a JSON object"),
        ({"queries": "[" * 100_000}, "line 1, is not JSON: nested deeper than 100"),
        ({"corpus": '{"_id": %s}' % ("9" * 5000)}, "line 1, is not JSON: Exceeds the limit"),
        (
            {"queries": '{"_id": 1, "text": "море"}'},
            "must have a `_id` that is a string and not blank. Given: int",
        ),
        (
            {"queries": '{"_id": "q1", "text": " "}'},
            "must have a `text` that is a string and not blank. Given: a blank",
        ),
        ({"queries": '{"_id": "q", "text": "a"}\n' * 2}, "line 2, repeats the `_id` of an earlier"),
        ({"corpus": '{"text": "a"}'}, "corpus.jsonl, line 1, must have a `_id`"),
        ({"qrels": "q1\td1\t1\n"}, "test.tsv, line 1, must be a header"),
        ({"qrels": HEADER + "q1\td1\n"}, "line 2, must be query-id, corpus-id and an integer"),
        ({"qrels": HEADER + "q1\td1\t0.5\n"}, "line 2, must be query-id, corpus-id and an integer"),
        (
            {"qrels": HEADER + f"q1\td1\t{10**30}\n"},
            "line 2, must have a grade from -1000000 to 1000000",
        ),
        ({"qrels": HEADER + f"q1\td1\t-{'9' * 5000}\n"}, "line 2, must have a grade from"),
        ({"qrels": HEADER + "q3\td1\t1\n"}, "line 2, names an unknown query: 'q3'"),
        ({"qrels": HEADER + "q1\td3\t1\n"}, "line 2, names an unknown document: 'd3'"),
        (
            {"qrels": HEADER + "q1\td1\t1\nq1\td1\t2\n"},
            "line 3, grades 'q1', 'd1' again",
        ),
        ({"qrels": HEADER + "q1\td1\t0\n"}, "has no relevant document for any query"),
    ],
)
def test_a_dataset_error_names_the_file_and_line(
    changed: dict[str, str | None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_beir(write_beir(tmp_path, **changed))
    assert message in str(caught.value)


# --------------------------------------------------------------------------------- report


@pytest.fixture
def sample_report() -> Report:
    """Two candidates, of which one passes. One query contains a script tag."""
    names = [f"q{number}" for number in range(20)]
    texts = {query_id: f"запрос {query_id}" for query_id in names} | {
        "q0": "<script>alert(1)</script> & море"
    }
    hits, misses = {query_id: ["d"] for query_id in names}, {query_id: [] for query_id in names}
    systems = [
        make_run("jina", hits, seconds=[0.3], price=Price(per_million_tokens=0.02), texts=texts),
        make_run("bge <b>", hits, price=Price(per_second=0.0002), texts=texts),
        make_run("bge плотныи\u0306", misses, texts=texts, about={"fingerprint": "f"}),
    ]
    return compare(systems, {query_id: {"d": 1} for query_id in names}, "jina")


def test_the_report_survives_json(sample_report: Report) -> None:
    data = sample_report.as_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["systems"][1]["cost"] == pytest.approx(0.002)
    assert data["systems"][1]["about"] == {"$ a second": 0.0002}
    assert data["systems"][2]["cost"] is None
    assert data["comparisons"][0]["verdict"]["outcome"] == "pass"
    assert {"bge-client", "ir-measures", "numpy", "python", "scipy"} == data["versions"].keys()


def test_the_page_loads_nothing_and_supports_dark_mode(sample_report: Report) -> None:
    page = report.html(sample_report)
    assert not re.search(r"https?:|//|<script|<link|<img|\bsrc=|\bhref=|url\(|@import", page)
    assert "color-scheme: light dark" in page
    assert "@media (prefers-color-scheme: dark)" in page
    light, dark = (set(re.findall(r"--\w[\w-]*(?=:)", part)) for part in page.split("@media")[:2])
    assert light == dark == set(re.findall(r"(?<=var\()--[\w-]+", page))


def test_the_page_shows_the_checks_and_escapes_queries(sample_report: Report) -> None:
    page = report.html(sample_report)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; море" in page
    assert "bge &lt;b&gt; passes all 5 checks" in page
    assert "bge <b>" not in page
    assert "unknown" in page
    for candidate in sample_report.comparisons:
        for check in candidate.verdict.checks:
            assert f"<td>{check.required_text}</td><td>{check.measured_text}</td>" in page


def test_table_columns_are_aligned_for_any_script(sample_report: Report) -> None:
    head, systems, notes, differences, *verdicts = report.text(sample_report).rstrip().split("\n\n")
    assert head.startswith("20 queries, ")
    assert "costs its idle timeout" in notes
    assert "p99 is close to the slowest query" in notes
    for table, rows in ((systems, 4), (differences, 7)):
        lines = table.splitlines()
        assert len(lines) == rows
        widths = {sum(not unicodedata.combining(letter) for letter in line) for line in lines}
        assert len(widths) == 1  # the last column is right-aligned
    assert [line.partition(":")[0] for line in verdicts] == ["PASS", "FAIL"]


def test_the_report_counts_the_queries_left_out() -> None:
    run, qrels = run_with_hits(20)
    result = compare([run], qrels, "bge", drawn_from=75, left_out=3)
    summary = "20 of 75 queries, drawn at random (3 more without a relevant document were not run)"
    assert report.text(result).startswith(f"{summary}, ")
    assert f"{summary}, each run on" in report.html(result)


def test_one_system_alone_is_shown_without_a_verdict() -> None:
    alone, qrels = run_with_hits(20)
    assert "There is no candidate" in report.html(compare([alone], qrels, "bge"))
    assert "PASS" not in report.text(compare([alone], qrels, "bge"))
