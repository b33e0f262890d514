"""The report of an evaluation on stdout. Imports the extra `eval`."""

from __future__ import annotations

import click

from ..evaluation import Measured, Report
from ..evaluation.comparison import METRICS
from ..evaluation.report import DIFFERENCE_COLUMNS, difference_row, dollars, notes, query_summary
from .output import print_table, print_verdict


def print_report(report: Report) -> None:
    """Print the systems, the differences from the baseline and the verdicts."""
    click.echo(f"{query_summary(report)}, {report.date}, the baseline is {report.baseline}\n")
    head = ["system", *METRICS, "p50 ms", "p99 ms", "$ per 1,000"]
    rows = [_system_row(report.baseline, system) for system in report.systems]
    print_table(head, rows, left=("system",))
    click.echo("".join(f"\n{note}." for note in notes(report)))
    if not report.comparisons:
        return
    click.echo()
    differences = [
        [comparison.name, metric, *difference_row(difference)]
        for comparison in report.comparisons
        for metric, difference in comparison.differences.items()
    ]
    head = ["candidate", "metric", *DIFFERENCE_COLUMNS]
    print_table(head, differences, left=("candidate", "metric"))
    for comparison in report.comparisons:
        print_verdict(comparison.verdict)


def _system_row(baseline: str, system: Measured) -> list[str]:
    return [
        f"{system.name} (baseline)" if system.name == baseline else system.name,
        *(f"{system.means[metric]:.4f}" for metric in METRICS),
        f"{system.p50_ms:.1f}",
        f"{system.p99_ms:.1f}",
        dollars(system.cost, sign=""),
    ]
