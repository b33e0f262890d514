"""Many endpoints for the same traffic, and which of them nobody beats in both cost and p99."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import msgspec

from .arrivals import Arrivals
from .report import Report, make_report
from .scenario import Endpoint, Scenario, check


@dataclass(frozen=True)
class Grid:
    """The values that are tried, each with each, and with the fewest and the most max workers."""

    cards: Sequence[str] = ("L4", "RTX 4090", "L40S", "H100")
    idle_timeouts: Sequence[float] = (5.0, 60.0, 600.0)
    min_workers: Sequence[int] = (0, 1)


def sweep(scenario: Scenario, arrivals: Arrivals, grid: Grid, seed: int = 0) -> Iterator[Report]:
    """Yield a report of each endpoint. A given `tokens_per_second` is that of the scenario's card,
    and no other one is tried.

    Raises PlanError: RunPod Serverless has no such card, or there are more min workers than
    `max_workers`.
    """
    cards = grid.cards if scenario.tokens_per_second is None else [scenario.card]
    for card, endpoint in product(cards, endpoints(scenario.endpoint, grid)):
        candidate = msgspec.structs.replace(scenario, card=card, endpoint=endpoint)
        check(candidate)
        yield make_report(candidate, arrivals, seed)


def endpoints(endpoint: Endpoint, grid: Grid) -> list[Endpoint]:
    """Return the endpoints that are tried with each card.

    A single worker can be cheaper than several: with QUEUE_DELAY, one that is slow to start brings
    others.
    """
    tried = []
    for min_workers, idle_timeout in product(grid.min_workers, grid.idle_timeouts):
        for max_workers in sorted({max(1, min_workers), endpoint.max_workers}):
            if min_workers == max_workers and idle_timeout != grid.idle_timeouts[0]:
                continue  # they never stop
            tried.append(
                msgspec.structs.replace(
                    endpoint,
                    min_workers=min_workers,
                    max_workers=max_workers,
                    idle_timeout=idle_timeout,
                )
            )
    return tried


def pareto_front(reports: Sequence[Report]) -> list[Report]:
    """Return the reports that no cheaper one beats in p99, or is within 1% of; cheapest first."""
    front: list[Report] = []
    for report in sorted(reports, key=lambda report: (report.dollars.total, p99(report))):
        if not front or p99(report) < 0.99 * p99(front[-1]):
            front.append(report)
    return front


def p99(report: Report) -> float:
    return report.latency.p99 or 0.0
