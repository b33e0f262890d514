"""The tables of `docs/bulk.md`, and those of `bge bulk` in `docs/benchmarks.md`: heads and rows."""

from __future__ import annotations

from typing import Any

from bge_builder.planner.advice import money
from plan_tables import Table, read

UNITS = ("KB", "MB", "GB", "TB", "PB")


def size(count: float) -> str:
    """Format a number of bytes with three significant digits."""
    power = max(1, (len(f"{count:.0f}") - 1) // 3)
    count /= 1000**power
    digits = 0 if count >= 99.5 else 1 if count >= 9.95 else 2
    return f"{count:.{digits}f} {UNITS[power - 1]}"


def hours(count: float) -> str:
    if count < 1:
        return f"{60 * count:.0f} min"
    return f"{count:.1f} h" if count < 100 else f"{count:,.0f} h"


def row() -> Table:
    """The bytes of a row."""
    measured = read("bulk")["row"]
    head = ["tokens", "terms", "payload and id", "dense float16", "float32", "sparse", "ColBERT"]
    sizes = [f"{count:,}" for count in measured["bytes"].values()]
    counts = [f"{measured['tokens']:.0f}", f"{measured['terms']:.0f}"]
    return [*head, f"pooled to 1 of {read('bulk')['pool']}"], [[*counts, *sizes]]


def work() -> Table:
    """Hours of one card, and dollars."""
    content = read("bulk")
    head = ["documents", "million tokens"]
    for card, is_measured in content["measured"].items():
        head += [f"hours of one {card}" + ("" if is_measured else " (assumed)"), "$"]
    head.append(f"{card}s for a day")  # the last one is the measured card
    rows = []
    for plan in content["plans"]:
        cells = [f"{plan['documents']:,}", f"{plan['tokens'] / 1e6:,.0f}"]
        for values in plan["cards"].values():
            cells += [hours(values["hours"]), money(values["dollars"])]
        rows.append([*cells, f"{max(1, -(-values['hours'] // 24)):.0f}"])
    return head, rows


def storage() -> Table:
    fields = ("payload", "float16", "float32", "sparse", "colbert", "pooled")
    rows = [
        [
            f"{plan['documents']:,}",
            *(size(plan["bytes"][field]) for field in fields),
            by_default(plan),
        ]
        for plan in read("bulk")["plans"]
    ]
    head = ["documents", "payload and id", "dense float16", "float32", "sparse", "ColBERT"]
    return [*head, f"pooled to 1 of {read('bulk')['pool']}", "by default"], rows


def by_default(plan: dict[str, Any]) -> str:
    return size(sum(plan["bytes"][field] for field in ("payload", "float16", "sparse")))


def qdrant() -> Table:
    rows = [
        [
            f"{plan['documents']:,}",
            *(size(count) for count in plan["qdrant"].values()),
            size(plan["qdrant_sparse"]),
        ]
        for plan in read("bulk")["plans"]
    ]
    head = ["documents", "dense, no copies", "scalar copies", "binary copies", "sparse index"]
    return head, rows
