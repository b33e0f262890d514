"""The cap on what a run may cost, by its own estimate."""

from __future__ import annotations

import time

from ..deploy.settings import Fields
from ..planner.cards import catalogue
from .record import Record, ReportError

PRICES = catalogue().pools  # dollars per second of one GPU


class BudgetError(ReportError):
    """The next step could exceed the cap."""


class Budget:
    """Counts every second from an endpoint's creation to its deletion as paid.

    That is the upper bound: a worker that has scaled to zero costs nothing, and there is one worker
    at most.
    """

    def __init__(self, max_dollars: float, gpu: Fields) -> None:
        """`gpu` is that of the endpoints. Raises ReportError: the price of a pool is not known."""
        pools = gpu["pools"]
        if unknown := [pool for pool in pools if pool not in PRICES]:
            raise ReportError(f"`gpu.pools` must be of {', '.join(PRICES)}. Given: {unknown[0]}")
        self.max_dollars = max_dollars
        self.price = max(PRICES[pool] for pool in pools) * int(gpu.get("count", 1))

    def spent(self, record: Record) -> float:
        """Return the dollars that the run's endpoints have cost at most."""
        return self.price * sum(lease.seconds(time.time()) for lease in record.leases)

    def check(self, record: Record, step: str, seconds: float) -> None:
        """Raises BudgetError if the run with a step of so many seconds could exceed the cap."""
        total = self.spent(record) + self.price * seconds
        if total > self.max_dollars:
            raise BudgetError(
                f"step `{step}` could bring the cost to ${total:.2f}, above `MAX_DOLLARS` "
                f"{self.max_dollars:.2f}. Run the command again with more to go on"
            )
