"""An HTML page with plots, complete in one file: SVG, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import jinja2

from .advice import endpoint_text, milliseconds, money
from .report import Report
from .scenario import Scenario
from .sweep import p99

TICK_HOURS = (1 / 6, 0.5, 1, 3, 6, 12, 24, 72, 120, 240, 720, 1440)
MAX_TICKS = 6
# Of a plot, in SVG units. Labels of the ticks are in the margins.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720.0, 280.0, 64.0, 676.0, 16.0, 250.0


@dataclass(frozen=True)
class Tick:
    position: float
    label: str


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    title: str
    is_best: bool  # on the Pareto front
    is_own: bool  # the scenario's endpoint


@dataclass(frozen=True)
class Scatter:
    points: list[Point]
    line: str  # along the front: `points` of a polyline
    x_ticks: list[Tick]
    y_ticks: list[Tick]


@dataclass(frozen=True)
class Area:
    path: str  # `d` of a filled path
    x_ticks: list[Tick]
    y_ticks: list[Tick]


@dataclass(frozen=True)
class Frame:
    """The edges of a plot, for the template."""

    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = RIGHT
    top: float = TOP
    bottom: float = BOTTOM


class Scale:
    """A logarithmic or linear axis from data to SVG units."""

    def __init__(self, low: float, high: float, start: float, end: float, *, log: bool) -> None:
        self.is_log = log
        self._low, self._high = (math.log10(low), math.log10(high)) if log else (low, high)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        position = math.log10(value) if self.is_log else value
        share = (position - self._low) / ((self._high - self._low) or 1.0)
        return round(self._start + share * (self._end - self._start), 1)

    def powers(self) -> list[float]:
        """Return the powers of ten within a logarithmic axis."""
        return [10.0**n for n in range(math.ceil(self._low), math.floor(self._high) + 1)]


def render(
    scenario: Scenario, reports: Sequence[Report], front: Sequence[Report], advice: str
) -> str:
    """Return the page. `reports[0]` is the scenario's own endpoint, the others are of a sweep."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(money=money, milliseconds=milliseconds, endpoint=endpoint_text)
    template = files(__package__).joinpath("page.html.j2").read_text("utf-8")
    return environment.from_string(template).render(
        scenario=scenario,
        report=reports[0],
        front=front,
        scatter=scatter(reports, front) if front else None,
        workers=area(reports[0]),
        split=split(reports[0]),
        advice=advice,
        frame=Frame(),
    )


def scatter(reports: Sequence[Report], front: Sequence[Report]) -> Scatter:
    """Dollars a month against p99, both logarithmic."""
    shown = [report for report in reports if report.dollars.total > 0 and p99(report) > 0]
    dollars = [report.dollars.total for report in shown] or [1.0]
    times = [p99(report) for report in shown] or [1.0]
    x = Scale(*decades(dollars), LEFT, RIGHT, log=True)
    y = Scale(*decades(times), BOTTOM, TOP, log=True)
    points = [
        Point(
            x(report.dollars.total),
            y(p99(report)),
            f"{endpoint_text(report)}: {money(report.dollars.total)}, {milliseconds(p99(report))}",
            report in front,
            report is reports[0],
        )
        for report in shown
    ]
    line = [f"{x(report.dollars.total)},{y(p99(report))}" for report in front if report in shown]
    return Scatter(
        sorted(points, key=lambda point: point.is_best),  # the last ones are drawn on top
        " ".join(line),
        [Tick(x(value), f"${value:,g}") for value in x.powers()],
        [Tick(y(value), f"{value / 1e3:,g} s") for value in y.powers()],
    )


def decades(values: Sequence[float]) -> tuple[float, float]:
    """Return the powers of ten around the values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return 10.0**low, 10.0 ** (high if high > low else low + 1)


def area(report: Report) -> Area:
    """The average number of workers in each period, as steps."""
    hours = report.period_hours * len(report.workers)
    top = max(1.0, math.ceil(round(max(report.workers), 2)))
    x = Scale(0, hours, LEFT, RIGHT, log=False)
    y = Scale(0, top, BOTTOM, TOP, log=False)
    steps = [f"M{x(0)} {y(0)}"]
    for index, workers in enumerate(report.workers):
        steps.append(f"V{y(workers)} H{x((index + 1) * report.period_hours)}")
    return Area(
        " ".join([*steps, f"V{y(0)} Z"]),
        [Tick(x(hour), label) for hour, label in labelled_hours(hours)],
        [Tick(y(value), f"{value:g}") for value in (0, top / 2, top)],
    )


def labelled_hours(hours: float) -> list[tuple[float, str]]:
    """Return the hours that are marked on an axis of `hours`, and their labels."""
    step = next((step for step in TICK_HOURS if hours / step <= MAX_TICKS), hours / MAX_TICKS)
    marked = [step * index for index in range(math.ceil(hours / step))]
    if step < 1:
        return [(hour, f"{60 * hour:.0f} min") for hour in marked]
    if step < 24:
        return [(hour, f"{hour:.0f} h") for hour in marked]
    return [(hour, f"day {hour // 24 + 1:.0f}") for hour in marked]


def split(report: Report) -> list[tuple[str, float, float]]:
    """Return name, dollars and percent of start, work and idle."""
    dollars = report.dollars
    total = dollars.total or 1.0
    parts = (("start", dollars.start), ("work", dollars.work), ("idle", dollars.idle))
    return [(name, value, 100 * value / total) for name, value in parts]
