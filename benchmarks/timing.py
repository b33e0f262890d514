"""Times of actions: in turn, and their percentiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import TypeVar

import numpy as np

Result = TypeVar("Result")


def seconds(action: Callable[[], object]) -> float:
    """Return the seconds that the action takes."""
    start = perf_counter()
    action()
    return perf_counter() - start


def in_turn(rounds: int, actions: Mapping[str, Callable[[], Result]]) -> dict[str, list[Result]]:
    """Run each action once a round, so that noise affects all of them. Return their results."""
    results: dict[str, list[Result]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            results[name].append(action())
    return results


def percentiles(values: Sequence[float], digits: int) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), digits) for p in (50, 99)}
