"""What a simulated endpoint answers and costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from .arrivals import DAY, Array, Arrivals
from .cards import Card, PlanError, Speed, catalogue
from .scenario import Bulk, Endpoint, Scenario
from .simulation import QUIET_SECONDS, simulate
from .worker import Life

MONTH_DAYS = 30
SLEEP_SECONDS = 7 * DAY  # without a request, after which RunPod lowers max workers to 0
MAX_BATCHES = 20_000_000  # about a minute
PERIODS = 336  # of the workers over time
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Latency:
    """Milliseconds, None if there is no request."""

    p50: float | None
    p95: float | None
    p99: float | None

    @classmethod
    def of(cls, seconds: Array) -> Latency:
        if not len(seconds):
            return cls(None, None, None)
        return cls(*(1e3 * float(value) for value in np.percentile(seconds, PERCENTILES)))


@dataclass(frozen=True)
class Dollars:
    """Of the report's period. Seconds that are paid are start, work or idle."""

    start: float
    work: float
    idle: float

    @property
    def total(self) -> float:
        return self.start + self.work + self.idle


@dataclass(frozen=True)
class HostedCost:
    name: str
    dollars: float  # of the report's period
    same_model: bool


@dataclass(frozen=True)
class Report:
    """`requests`, `tokens`: in the simulated days. `cold_share`: of the requests, 0 to 1.

    Dollars are those of a month of 30 days or, if `is_once`, of all bulk jobs: there is no other
    traffic.
    `workers` is their average number in each period of `period_hours`; `hosted` is sorted by cost.
    `warm` is the latency of the requests that met no cold start.
    """

    card: str
    speed_source: str
    tokens_per_second: float
    endpoint: Endpoint
    days: int
    is_once: bool
    requests: int
    tokens: float
    latency: Latency
    warm: Latency
    cold_share: float
    workers: list[float]
    period_hours: float
    dollars: Dollars
    dollars_per_million: float | None
    hosted: list[HostedCost]
    last_reply_hours: float
    notes: list[str]

    @property
    def period(self) -> str:
        return "in all" if self.is_once else "a month"

    @property
    def cheapest_same_model(self) -> HostedCost | None:
        return next((cost for cost in self.hosted if cost.same_model), None)


@dataclass(frozen=True)
class Machine:
    """A card with its speed: measured, assumed or given; and dollars per second."""

    card: Card
    speed: Speed
    source: str
    price: float

    @classmethod
    def of(cls, scenario: Scenario) -> Machine:
        """Raises PlanError: RunPod Serverless has no such card."""
        cards = catalogue()
        card = cards.card(scenario.card)
        speed, source = cards.speed(card), f"assumed: {cards.measured.card}'s by published peaks"
        if cards.is_measured(card):
            source = "measured"
        if scenario.tokens_per_second is not None:
            measured = cards.measured
            speed = Speed(
                tokens_per_second=scenario.tokens_per_second,
                batch_seconds=measured.batch_seconds,
                request_seconds=measured.request_seconds,
            )
            source = "given"
        return cls(card, speed, source, cards.price(card))


def make_report(scenario: Scenario, arrivals: Arrivals, seed: int = 0) -> Report:
    """Simulate the endpoint of `scenario` with these requests.

    Raises PlanError: RunPod Serverless has no such card, or the simulation would take too long.
    """
    machine = Machine.of(scenario)
    tokens = float(arrivals.tokens.sum())
    check_batches(tokens / scenario.endpoint.max_batch_tokens)
    is_once = bool(scenario.traffic) and all(isinstance(part, Bulk) for part in scenario.traffic)
    seconds = 0.0 if is_once else scenario.days * DAY
    outcome = simulate(arrivals, scenario.endpoint, machine.speed, seconds=seconds, seed=seed)
    scale = 1.0 if is_once else MONTH_DAYS / scenario.days
    dollars = cost(outcome.lives, machine.price * scale)
    end = float((arrivals.times + outcome.latencies).max(initial=0.0))
    workers, period = over_time(outcome.lives, max(seconds, end))
    return Report(
        card=machine.card.name,
        speed_source=machine.source,
        tokens_per_second=machine.speed.tokens_per_second,
        endpoint=scenario.endpoint,
        days=scenario.days,
        is_once=is_once,
        requests=len(arrivals),
        tokens=tokens,
        latency=Latency.of(outcome.latencies),
        warm=Latency.of(outcome.latencies[~outcome.met_cold_start]),
        cold_share=float(outcome.met_cold_start.mean()) if len(arrivals) else 0.0,
        workers=workers,
        period_hours=period / 3600,
        dollars=dollars,
        dollars_per_million=1e6 * dollars.total / (tokens * scale) if tokens else None,
        hosted=hosted_costs(arrivals, scale),
        last_reply_hours=end / 3600,
        notes=notes(arrivals, scenario, end),
    )


def check_batches(batches: float) -> None:
    if batches > MAX_BATCHES:
        raise PlanError(
            f"`traffic` must have at most {MAX_BATCHES:,} micro-batches, its tokens by "
            f"`max_batch_tokens`. Given: {batches:,.0f}"
        )


def cost(lives: Sequence[Life], price: float) -> Dollars:
    return Dollars(
        price * sum(life.start for life in lives),
        price * sum(life.work for life in lives),
        price * sum(life.idle for life in lives),
    )


def hosted_costs(arrivals: Arrivals, scale: float) -> list[HostedCost]:
    """Costs at each provider that has the models for these requests, the lowest first."""
    rerank = float(arrivals.tokens[arrivals.is_rerank].sum()) * scale / 1e6
    embed = float(arrivals.tokens.sum()) * scale / 1e6 - rerank
    costs = [
        HostedCost(model.name, embed * model.embed + rerank * (model.rerank or 0), model.same_model)
        for model in catalogue().hosted
        if model.rerank is not None or not rerank
    ]
    return sorted(costs, key=lambda cost: cost.dollars)


def over_time(lives: Sequence[Life], seconds: float) -> tuple[list[float], float]:
    """Return the average number of workers in equal periods, and the seconds of a period."""
    started = np.array([life.started for life in lives])
    stopped = np.array([life.stopped for life in lives])
    edges = np.linspace(0, seconds, PERIODS + 1)
    paid = [(np.minimum(stopped, edge) - np.minimum(started, edge)).sum() for edge in edges]
    period = seconds / PERIODS
    return (np.diff(paid) / period).tolist(), period


def notes(arrivals: Arrivals, scenario: Scenario, end: float) -> list[str]:
    """What the numbers leave out."""
    texts = []
    pauses = np.diff(arrivals.times, prepend=0.0)
    if (asleep := int((pauses >= SLEEP_SECONDS).sum())) > 0:
        texts.append(
            f"{asleep} times there is no request for 7 days: RunPod then lowers max workers to 0, "
            "and requests wait until somebody raises it. Here that takes no time"
        )
    elif (pauses >= QUIET_SECONDS).any():
        texts.append("After 3 days without a request, RunPod lowers max workers to 2")
    if end > scenario.days * DAY + 3600:
        texts.append(f"The last reply comes after {end / DAY:.1f} days: the endpoint is too slow")
    return texts


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as JSON values."""
    fields: dict[str, Any] = msgspec.to_builtins(report)
    fields["dollars"]["total"] = report.dollars.total
    return fields
