"""`bge evaluate --shadow`: the comparisons in a file of shadow mode, and a verdict on them."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import timedelta

import click

from bge_client import ConfigurationError

from ..shadow import ShadowSummary, ShadowThresholds, judge_pair, summarize
from ..shadow.summary import Latency, Pair
from ..verdict import Verdict
from .output import exit_unless_passed, print_json, print_table, print_verdict

UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def evaluate_shadow(
    path: str, since: str | None, thresholds: ShadowThresholds, *, as_json: bool
) -> None:
    """Print the comparisons in the window, and exit with 7 unless each pair passes.

    Raises:
        ConfigurationError: the file has no comparison in the window.
    """
    summary = summarize(path, None if since is None else parse_window(since))
    if not summary.pairs:
        window = f" since {summary.since}" if summary.since else ""
        raise ConfigurationError(f"{path} has no comparison{window}")
    verdicts = [judge_pair(pair, thresholds) for pair in summary.pairs]
    if as_json:
        print_json(summary.as_dict() | {"verdicts": [asdict(verdict) for verdict in verdicts]})
    else:
        print_summary(summary, verdicts)
    exit_unless_passed(verdicts)


def parse_window(since: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,4})([mhd])", since)
    if match is None:
        raise ConfigurationError(
            f"`--since` must be a number of minutes, hours or days, such as 7d. Given: {since!r}"
        )
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def print_summary(summary: ShadowSummary, verdicts: list[Verdict]) -> None:
    window = f" since {summary.since}" if summary.since else ""
    click.echo(
        f"{summary.count} comparisons{window} "
        f"({summary.dropped} dropped, {summary.broken} incomplete lines)\n"
    )
    head = ["live", "other", "queries", "overlap", "RBO", "tau", "same first"]
    head += ["live p50, p99 ms", "other p50, p99 ms"]
    print_table(head, map(_row, summary.pairs), left=("live", "other"))
    for verdict in verdicts:
        print_checks(verdict)
        print_verdict(verdict)


def print_checks(verdict: Verdict) -> None:
    click.echo()
    rows = [
        [check.name, check.required_text, check.measured_text, "yes" if check.passed else "no"]
        for check in verdict.checks
    ]
    print_table(["check", "required", "measured", "passed"], rows, left=("check",))


def _row(pair: Pair) -> list[str]:
    means = [spread.mean if spread else None for spread in (pair.overlap, pair.rbo, pair.tau)]
    shares = ["–" if share is None else f"{share:.3f}" for share in (*means, pair.same_first)]
    latencies = map(_latency, (pair.live_ms, pair.other_ms))
    return [pair.live, pair.other, str(pair.count), *shares, *latencies]


def _latency(latency: Latency | None) -> str:
    return f"{latency.p50:.1f}, {latency.p99:.1f}" if latency else "–"
