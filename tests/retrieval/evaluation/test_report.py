"""The report as HTML and JSON."""

from __future__ import annotations

import json
import re

import pytest

from bge_retrieval import AlignedToken, Explanation, SharedToken
from bge_retrieval.evaluation import Price, Report, compare, moved_documents, report
from bge_retrieval.evaluation.differences import Reason
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


def test_a_query_links_to_why_its_documents_moved() -> None:
    queries = [f"q{number}" for number in range(20)]
    base = make_run("jina", {query_id: ["same", "<a>", "b"] for query_id in queries})
    candidate = make_run("bge", {query_id: ["same", "b"] for query_id in queries})
    result = compare([base, candidate], None, "jina")
    cases = report.shown_cases(result)
    moved = moved_documents(result, [base, candidate], cases)
    assert moved[cases[0]] == [("<a>", 2, None), ("b", 3, 2)]
    shared, aligned = [SharedToken("▁<b>", 0.5, 0.25)], [AlignedToken("▁<b>", "▁c", 0.75)]
    explanation = Explanation(0.5, shared, aligned)
    page = report.html(result, reasons={cases[0]: [Reason(moved[cases[0]][0], explanation)]})
    assert page.count('href="#why-1"') == page.count('id="why-1"') == 1
    assert "<td>&lt;a&gt;</td><td>2</td><td>–</td><td>0.500</td><td>0.125</td>" in page
    assert "<bdi>▁&lt;b&gt;</bdi>&nbsp;0.50&nbsp;×&nbsp;0.25" in page
    assert "<bdi>▁&lt;b&gt;</bdi>&nbsp;→&nbsp;<bdi>▁c</bdi>&nbsp;0.75" in page
    assert "href=" not in report.html(result)
