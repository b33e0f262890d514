"""Render a Report as a self-contained HTML page. Its cells are also those of `bge evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple

import jinja2

from ..verdict import MIN_QUERIES
from .agreement import DEPTH as AGREEMENT_DEPTH
from .agreement import RankingAgreement
from .comparison import METRICS, Difference, Report
from .differences import Case, Reason
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


AGREEMENT_COLUMNS = [f"overlap@{AGREEMENT_DEPTH}", "RBO", "tau", "same first"]


def agreement_row(agreement: RankingAgreement) -> list[str]:
    """Return the cells under `AGREEMENT_COLUMNS`."""
    values = agreement.overlap, agreement.rbo, agreement.tau, agreement.same_first
    return ["–" if value is None else f"{value:.3f}" for value in values]


def _signed(number: float) -> str:
    return f"{number:+.4f}".replace("-", "−")


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


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


NO_REASONS: Mapping[Case, Sequence[Reason]] = {}


def shown_cases(report: Report) -> list[Case]:
    """Return the queries that the page shows, of each candidate."""
    cases = []
    for item in report.comparisons:
        rows = [*_queries(report, item.name, 1), *_queries(report, item.name, -1)]
        ids = [row.query_id for row in rows] + [query.query_id for query in item.agreement.least]
        cases += [Case(item.name, query_id) for query_id in dict.fromkeys(ids)]
    return cases


def html(
    report: Report,
    title: str = "Search comparison",
    reasons: Mapping[Case, Sequence[Reason]] = NO_REASONS,
) -> str:
    """Return a page without scripts, fonts or images, in the reader's light or dark scheme.

    A query with `reasons` is a link to them.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = files(__package__).joinpath("report.html.j2").read_text("utf-8")
    names = [item.name for item in report.comparisons]
    return environment.from_string(template).render(
        title=title,
        report=report,
        reasons=reasons,
        anchors={case: f"why-{number}" for number, case in enumerate(reasons, 1)},
        wins={name: _queries(report, name, 1) for name in names},
        losses={name: _queries(report, name, -1) for name in names},
        quality=[_quality_chart(report, metric) for metric in METRICS if report.is_judged],
        speed=[
            _latency_chart(report, "Half of the queries take less than (p50)", "p50_ms"),
            _latency_chart(report, "99 of 100 queries take less than (p99)", "p99_ms"),
        ],
        cost=_cost_chart(report),
        agreement_row=agreement_row,
        agreement_columns=AGREEMENT_COLUMNS,
        difference_row=difference_row,
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


def _latency_chart(report: Report, title: str, name: str) -> Chart:
    values = [getattr(system, name) for system in report.systems]
    if not report.is_judged:
        scale = max(values) * 1.05 or 1
        return Chart(title, _bars(report, values, "{:.1f} ms", scale))
    limit = getattr(report.thresholds, name)
    scale = max(limit, *values) * 1.05 or 1
    bars = [
        bar._replace(is_over_limit=not bar.is_baseline and ms >= limit)
        for bar, ms in zip(_bars(report, values, "{:.1f} ms", scale), values, strict=True)
    ]
    return Chart(title, bars, limit=100 * limit / scale, limit_text=f"required: below {limit:g} ms")


def _cost_chart(report: Report) -> Chart:
    costs = [system.cost for system in report.systems]
    scale = max(cost or 0 for cost in costs) * 1.05 or 1
    return Chart("Dollars for 1,000 queries", _bars(report, costs, "${:,.4f}", scale))


def _bars(report: Report, values: Sequence[float | None], template: str, scale: float) -> list[Bar]:
    return [
        Bar(
            system.name,
            "unknown" if value is None else template.format(value),
            None if value is None else 100 * value / scale,
            system.name == report.baseline,
        )
        for system, value in zip(report.systems, values, strict=True)
    ]


def _queries(report: Report, candidate: str, sign: int) -> list[Row]:
    """Return the queries whose difference has this sign, largest first."""
    if not report.is_judged:
        return []
    base = report.system(report.baseline).scores[WINS_METRIC]
    scores = report.system(candidate).scores[WINS_METRIC]
    gaps = {query_id: sign * (scores[query_id] - base[query_id]) for query_id in base}
    ids = sorted((id for id in gaps if gaps[id] > 1e-12), key=lambda id: -gaps[id])
    return [
        Row(id, report.queries[id], base[id], scores[id], _signed(sign * gaps[id]))
        for id in ids[:MAX_ROWS]
    ]
