"""The report as HTML and JSON."""

from __future__ import annotations

import json
import re

import pytest

from bge_retrieval.evaluation import Price, Report, compare, report
from runs import make_run, run_with_hits


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


def test_the_report_counts_the_queries_left_out() -> None:
    run, qrels = run_with_hits(20)
    result = compare([run], qrels, "bge", drawn_from=75, left_out=3)
    summary = "20 of 75 queries, drawn at random (3 more without a relevant document were not run)"
    assert f"{summary}, each run on" in report.html(result)


def test_one_system_alone_is_shown_without_a_verdict() -> None:
    alone, qrels = run_with_hits(20)
    assert "There is no candidate" in report.html(compare([alone], qrels, "bge"))
