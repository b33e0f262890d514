"""The tables of `docs/bulk.md`, and those of `bge bulk` in `docs/benchmarks.md`: heads and rows."""

from __future__ import annotations

from typing import Any

from bge_builder.planner.advice import money
from bge_builder.planner.cards import catalogue
from plan_tables import Table, read

ROLES = ("driver", "actors", "tasks", "services")
LONG_RUNS = ("one actor", "short rows")  # others are over before a slope means anything
# Outputs and rows of a partition.
PARTITIONS = {
    "8,192 rows, dense and sparse": ("sparse", 8192),
    "256 rows, with ColBERT": ("colbert", 256),
}
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


def actors(results: dict[str, Any]) -> Table:
    """One and two actors beside the engine alone."""
    bulk = results["bulk"]
    lone, two = bulk["one actor"], bulk["two actors"]
    rows = [
        ["the engine alone", span(lone["alone_tokens_per_second"]), "", "", "", "", "", ""],
        ["one actor", span(lone["tokens_per_second"]), shares(lone), *spent(lone)],
        ["two actors", f"{two['tokens_per_second']:,}", shares(two), *spent(two)],
    ]
    machine = results["machine"]
    title = f"{lone['rows']:,} rows, {lone['tokens']:,} tokens; {machine['cpu']}, one thread each"
    head = [title, "tokens a second", "of the engine's", "seconds before the first partition"]
    return [*head, *(f"CPU s: {role}" for role in ROLES)], rows


def spent(entry: dict[str, Any]) -> list[str]:
    cpu = [f"{entry['cpu_seconds'].get(role, 0):.0f}" for role in ROLES]
    return [f"{entry['seconds_before']:.0f}", *cpu]


def shares(entry: dict[str, Any]) -> str:
    return "–".join(f"{share:.2f}" for share in sorted(entry["shares"]))


def span(values: list[int]) -> str:
    return f"{min(values):,}–{max(values):,}"


def memory(results: dict[str, Any]) -> Table:
    """The memory of each role: MB at most, and MB that a minute adds."""
    runs = {name: results["bulk"][name]["memory"] for name in LONG_RUNS}
    roles = (*ROLES, "object store")
    rows = [
        [name, *(f"{of_role[role]['peak_mb']:,} ({growth(of_role[role])})" for role in roles)]
        for name, of_role in runs.items()
    ]
    return ["MB at most (MB a minute)", *roles], rows


def growth(entry: dict[str, float]) -> str:
    return f"{entry['mb_per_minute']:+,.0f}"


def scale(results: dict[str, Any]) -> Table:
    """How many cards the driver feeds, on paper."""
    content, tiny = read("bulk"), results["bulk"]["partitions of a row"]
    card = next(card for card, is_measured in content["measured"].items() if is_measured)
    ceiling = 1000 / tiny["driver_ms"]
    rows = []
    for name, (outputs, count) in PARTITIONS.items():
        rate = catalogue().speed(catalogue().card(card)).tokens_per_second
        seconds = count * content["row"]["tokens"] / (rate * content["shares"][outputs])
        fed = ceiling * seconds
        rows.append(
            [name, f"{seconds:.2f}", f"{1000 / seconds:,.0f}", f"{ceiling:.0f}", f"{fed:,.0f}"]
        )
    head = ["partitions", f"seconds of one {card}", f"a second, for 1,000 {card}s"]
    return [*head, "a second, by the driver", f"{card}s that it feeds"], rows
