"""Render a Report as a self-contained HTML page. Its cells are also those of `bge evaluate`."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.resources import files
from typing import NamedTuple

import jinja2

from ..verdict import MIN_QUERIES
from .comparison import METRICS, Comparison, Difference, Measured, Report
from .systems import BUSY

SLOWEST = "With fewer than 100 queries, p99 is close to the slowest query"
MAX_ROWS = 5  # wins shown for a candidate, and losses
WINS_METRIC = "nDCG@10"  # the most fine-grained of the three


def query_summary(report: Report) -> str:
    """Return how many queries ran, and of how many."""
    count = len(report.queries)
    drawn = f"{count} of {report.drawn_from} queries, drawn at random"
    summary = drawn if count < report.drawn_from else f"{count} queries"
    if report.left_out:
        summary += f" ({report.left_out} more without a relevant document were not run)"
    return summary


def notes(report: Report) -> list[str]:
    """Return the notes on the table of systems."""
    return [BUSY] + ([SLOWEST] if len(report.queries) < 100 else [])


DIFFERENCE_COLUMNS = ["ratio", "difference", "95% interval", "p", "p (Holm)", "better/worse/equal"]


def difference_row(difference: Difference) -> list[str]:
    """Return the cells under `DIFFERENCE_COLUMNS`."""
    return [
        "–" if difference.ratio is None else f"{difference.ratio * 100:.1f}%",
        _signed(difference.mean),
        f"{_signed(difference.low)} … {_signed(difference.high)}",
        _p_value(difference.p),
        _p_value(difference.p_holm),
        f"{difference.wins}/{difference.losses}/{difference.ties}",
    ]


def _signed(number: float) -> str:
    return f"{number:+.4f}".replace("-", "−")


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def dollars(cost: float | None, sign: str = "$") -> str:
    return "unknown" if cost is None else f"{sign}{cost:,.4f}"


# ----------------------------------------------------------------------------------- page


class Bar(NamedTuple):
    """A system's bar; lengths in percent of the chart's width."""

    label: str
    value: str
    length: float | None  # None if unknown
    is_baseline: bool
    interval: tuple[float, float] | None = None  # left end and length
    is_over_limit: bool = False  # only for a candidate


class Chart(NamedTuple):
    """Bars on one scale. Marks are in percent of the chart's width."""

    title: str
    bars: list[Bar]
    baseline: float | None = None  # the end of the baseline's bar
    limit: float | None = None  # the threshold for candidates
    limit_text: str = ""


class Row(NamedTuple):
    """A query with a large difference between candidate and baseline."""

    query_id: str
    query: str
    baseline: float
    candidate: float
    difference: str


class CandidateView(NamedTuple):
    """A candidate's data for the page."""

    name: str
    outcome: str
    sentence: str
    checks: list[tuple[str, str, str, bool]]  # name, required, measured, passed
    differences: list[tuple[str, list[str]]]  # metric, cells under DIFFERENCE_COLUMNS
    wins: list[Row]
    losses: list[Row]


def html(report: Report, title: str = "Search comparison") -> str:
    """Return a page without scripts, fonts or images, in the reader's light or dark scheme."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = files(__package__).joinpath("report.html.j2").read_text("utf-8")
    return environment.from_string(template).render(
        title=title,
        report=report,
        candidates=[_candidate_view(report, comparison) for comparison in report.comparisons],
        quality=[_quality_chart(report, metric) for metric in METRICS],
        speed=[
            _chart(
                report,
                "Half of the queries take less than (p50)",
                lambda system: system.p50_ms,
                lambda ms: f"{ms:.1f} ms",
                report.thresholds.p50_ms,
            ),
            _chart(
                report,
                "99 of 100 queries take less than (p99)",
                lambda system: system.p99_ms,
                lambda ms: f"{ms:.1f} ms",
                report.thresholds.p99_ms,
            ),
        ],
        cost=_chart(report, "Dollars for 1,000 queries", lambda system: system.cost, dollars),
        difference_columns=DIFFERENCE_COLUMNS,
        wins_metric=WINS_METRIC,
        query_summary=query_summary(report),
        busy=BUSY,
        slowest=SLOWEST if len(report.queries) < 100 else "",
        min_queries=MIN_QUERIES,
    )


def _quality_chart(report: Report, metric: str) -> Chart:
    """Chart from 0 to 1. A candidate's interval is that of its difference, around the baseline."""
    base = report.system(report.baseline).means[metric]
    minimum = report.thresholds.ratios()[metric]
    differences = {item.name: item.differences[metric] for item in report.comparisons}
    bars = []
    for system in report.systems:
        interval = None
        if system.name in differences:
            difference = differences[system.name]
            low, high = max(0.0, base + difference.low), min(1.0, base + difference.high)
            interval = 100 * low, 100 * (high - low)
        mean = system.means[metric]
        is_baseline = system.name == report.baseline
        bars.append(Bar(system.name, f"{mean:.3f}", 100 * mean, is_baseline, interval))
    limit_text = f"required: at least {minimum * 100:g}% of {report.baseline}"
    return Chart(metric, bars, 100 * base, 100 * base * minimum, limit_text)


def _chart(
    report: Report,
    title: str,
    value: Callable[[Measured], float | None],
    format_value: Callable[[float | None], str],
    limit: float | None = None,
) -> Chart:
    """Chart from 0 to slightly more than the largest value or the limit."""
    values = {system.name: value(system) for system in report.systems}
    known = [number for number in values.values() if number is not None]
    scale = max([limit or 0, *known]) * 1.05 or 1
    bars = [
        Bar(
            name,
            format_value(number),
            None if number is None else 100 * number / scale,
            name == report.baseline,
            is_over_limit=name != report.baseline and (number or 0) >= (limit or math.inf),
        )
        for name, number in values.items()
    ]
    if limit is None:
        return Chart(title, bars)
    return Chart(title, bars, limit=100 * limit / scale, limit_text=f"required: below {limit:g} ms")


def _candidate_view(report: Report, comparison: Comparison) -> CandidateView:
    verdict = comparison.verdict
    checks = [(c.name, c.required_text, c.measured_text, c.passed) for c in verdict.checks]
    base = report.system(report.baseline).scores[WINS_METRIC]
    scores = report.system(comparison.name).scores[WINS_METRIC]
    differences = {query_id: scores[query_id] - base[query_id] for query_id in base}

    def rows(sign: int) -> list[Row]:
        """Return the queries whose difference has this sign, largest first."""
        ids = [id for id in differences if sign * differences[id] > 1e-12]
        ids.sort(key=lambda id: -abs(differences[id]))
        return [
            Row(id, report.queries[id], base[id], scores[id], _signed(differences[id]))
            for id in ids[:MAX_ROWS]
        ]

    return CandidateView(
        comparison.name,
        verdict.outcome,
        verdict.sentence,
        checks,
        [(metric, difference_row(row)) for metric, row in comparison.differences.items()],
        wins=rows(1),
        losses=rows(-1),
    )
