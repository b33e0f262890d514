"""`bge plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import msgspec

from bge_client.cli import exit_codes

from .advice import advise, endpoint_text, milliseconds, money
from .arrivals import generate
from .page import render
from .report import Report, as_json, make_report
from .scenario import Scenario, check, read_scenario
from .sweep import Grid, pareto_front, sweep
from .table import Row, print_table

ENDPOINT_OPTIONS = ("idle_timeout", "min_workers", "max_workers")


class Values(click.ParamType[list[Any]]):
    name = "values"

    def __init__(self, kind: type[str] | type[int] | type[float]) -> None:
        self._kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[Any]:
        try:
            return [self._kind(part.strip()) for part in str(value).split(",")]
        except ValueError:
            kind = self._kind.__name__
            self.fail(f"must be `{kind}` values separated by commas. Given: {value}", param, ctx)


@click.command()
@click.argument("scenario", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--card", help="A card of RunPod Serverless. [default: the scenario's]")
@click.option(
    "--tokens-per-second", type=float, help="A worker's measured rate: no other card is tried."
)
@click.option("--idle-timeout", type=float, help="Seconds.")
@click.option("--min-workers", type=int)
@click.option("--max-workers", type=int)
@click.option("--days", type=int, help="Days to simulate.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of traffic and starts."
)
@click.option("--sweep", "is_sweep", is_flag=True, help="Try many endpoints: each value of these.")
@click.option("--sweep-cards", type=Values(str), help="[default: L4,RTX 4090,L40S,H100]")
@click.option("--sweep-idle-timeouts", type=Values(float), help="[default: 5,60,600]")
@click.option("--sweep-min-workers", type=Values(int), help="[default: 0,1]")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON instead of tables.")
def plan(
    scenario: Path,
    is_sweep: bool,
    sweep_cards: list[str] | None,
    sweep_idle_timeouts: list[float] | None,
    sweep_min_workers: list[int] | None,
    seed: int,
    html: Path | None,
    is_json: bool,
    **options: Any,
) -> None:
    """Simulate an endpoint with the traffic of SCENARIO, a TOML file: latency and dollars.

    \b
      bge plan builder/examples/search_box.toml
      bge plan builder/examples/search_box.toml --sweep --html plan.html
    """
    grid = Grid(
        sweep_cards or Grid.cards,
        sweep_idle_timeouts or Grid.idle_timeouts,
        sweep_min_workers or Grid.min_workers,
    )
    is_sweep = is_sweep or grid != Grid()
    with exit_codes():
        chosen = with_options(read_scenario(scenario), options)
        arrivals = generate(chosen.traffic, chosen.days, seed)
        reports = [make_report(chosen, arrivals, seed)]
        if is_sweep:
            reports += sweep(chosen, arrivals, grid, seed)
        front = pareto_front(reports) if is_sweep and len(arrivals) else []
        advice = advise(reports, chosen.target)
        if html is not None:
            html.write_text(render(chosen, reports, front, advice), "utf-8")
        if is_json:
            print_json(reports[0], front, advice)
        else:
            print_tables(chosen, reports[0], front, advice)


def with_options(scenario: Scenario, options: dict[str, Any]) -> Scenario:
    """Return the scenario with the options that are set. Raises PlanError: they contradict it."""
    given = {name: value for name, value in options.items() if value is not None}
    endpoint = {name: given.pop(name) for name in ENDPOINT_OPTIONS if name in given}
    changed = msgspec.structs.replace(
        scenario, endpoint=msgspec.structs.replace(scenario.endpoint, **endpoint), **given
    )
    check(changed)
    return changed


def print_json(report: Report, front: list[Report], advice: str) -> None:
    content: dict[str, Any] = {"advice": advice, "report": as_json(report)}
    if front:
        content["front"] = [as_json(best) for best in front]
    click.echo(json.dumps(content))


def print_tables(scenario: Scenario, report: Report, front: list[Report], advice: str) -> None:
    print_report(scenario, report)
    if front:
        print_front(front)
    click.echo(f"\n{advice}")


def print_report(scenario: Scenario, report: Report) -> None:
    rate = f"{report.tokens_per_second:,.0f} tokens a second ({report.speed_source})"
    click.echo(f"{scenario.about}\n" if scenario.about else "", nl=False)
    click.echo(f"{endpoint_text(report)}, {rate}")
    period = "in all" if report.is_once else f"in {report.days} days"
    click.echo(f"{report.requests:,} requests, {report.tokens:,.0f} tokens {period}\n")
    latencies = [("all requests", report.latency), ("without a cold start", report.warm)]
    print_table(
        ("latency", "p50", "p95", "p99"),
        [(name, *map(milliseconds, (x.p50, x.p95, x.p99))) for name, x in latencies],
    )
    average = sum(report.workers) / len(report.workers)
    click.echo(f"\n{report.cold_share:.2%} meet a cold start; {average:.2f} workers on average\n")
    print_table(
        (report.period, "start", "work", "idle", "total", "a million tokens"), [cost_row(report)]
    )
    click.echo()
    hosted = [(cost.name, money(cost.dollars)) for cost in report.hosted]
    print_table(("the same traffic hosted", report.period), hosted)
    for note in report.notes:
        click.echo(f"\nNote: {note}.")


def cost_row(report: Report) -> Row:
    dollars = report.dollars
    million = report.dollars_per_million
    parts = (dollars.start, dollars.work, dollars.idle, dollars.total)
    return (report.card, *map(money, parts), "–" if million is None else f"${million:,.3f}")


def print_front(front: list[Report]) -> None:
    """Print what no other endpoint of the sweep beats in cost and p99."""
    click.echo()
    rows = [
        (
            endpoint_text(report),
            money(report.dollars.total),
            milliseconds(report.latency.p50),
            milliseconds(report.latency.p99),
            f"{report.cold_share:.1%}",
        )
        for report in front
    ]
    print_table(("Pareto front", front[0].period, "p50", "p99", "cold"), rows)
