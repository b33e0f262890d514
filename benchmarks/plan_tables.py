"""The tables of `docs/costs.md`: heads and rows. See `tables.py`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from bge_builder.planner.advice import milliseconds, money
from bge_builder.planner.cards import catalogue
from bge_builder.planner.scenario import Endpoint
from projection import HOSTED_PRICE
from results import FOLDER

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
REQUESTS_OF_A_COURSE = {"courses": 207, "courses_by_dollars": 3906}
REQUIRED = {"p50": 0.15, "p99": 0.30, "paid": 0.15}


def read(name: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / "plan" / f"{name}.json").read_text("utf-8")))


def cards() -> Table:
    """Where a card that is always busy costs what the same model costs hosted."""
    prices, endpoint = catalogue(), Endpoint()
    empty_seconds = endpoint.cold_start + endpoint.idle_timeout + endpoint.stop_seconds
    rows = []
    for card in prices.cards:
        if card.pool is None:
            continue
        price, rate = prices.price(card), prices.speed(card).tokens_per_second
        even = price / HOSTED_PRICE * 1e6
        rows.append(
            [
                f"{card.name}, {card.memory_gb} GB",
                f"{price:.5f}",
                f"{rate:,.0f}",
                "measured" if prices.is_measured(card) else "assumed",
                f"{1e6 * price / rate:.4f}",
                f"{even:,.0f}",
                f"{even / rate:.0%}",
                f"{empty_seconds * even:,.0f}",
            ]
        )
    head = [
        "card",
        "$ a second",
        "tokens a second",
        "",
        "$ a million tokens, always busy",
        f"tokens a second at which it costs ${HOSTED_PRICE:.3f} a million",
        "of its rate",
        "tokens hosted for one start and one idle timeout",
    ]
    return head, rows


def answers() -> Table:
    rows = []
    for name, answer in read("answers").items():
        report = answer["report"]
        scale = 1 if report["is_once"] else 30 / report["days"]
        hosted = next(cost for cost in report["hosted"] if cost["same_model"])
        rows.append(
            [
                f"`{name}.toml`",
                f"{report['requests'] * scale:,.0f}",
                f"{report['tokens'] * scale / 1e6:,.0f}",
                *(money(report["dollars"][part]) for part in ("start", "work", "idle", "total")),
                money(hosted["dollars"]),
                f"{report['cold_share']:.1%}",
                milliseconds(report["latency"]["p50"]),
                milliseconds(report["latency"]["p99"]),
                milliseconds(report["warm"]["p99"]),
                f"{answer['seconds']:.1f} s",
            ]
        )
    head = ["", "requests", "million tokens", "$ start", "work", "idle", "total", "hosted"]
    return [*head, "meet a cold start", "p50", "p99", "p99 without", "CPU time"], rows


def advice() -> str:
    return "".join(
        f"- `{name}.toml`. {answer['about']} **{answer['advice']}**\n"
        for name, answer in read("answers").items()
    )


def starts() -> Table:
    rows = [
        [
            f"`{name}.toml`",
            f"{report['endpoint']['cold_start']:g}",
            *(money(report["dollars"][part]) for part in ("start", "total")),
            f"{report['cold_share']:.1%}",
            milliseconds(report["latency"]["p99"]),
        ]
        for name, answer in read("answers").items()
        for report in answer.get("starts", ())
    ]
    return ["", "seconds of a start", "$ start", "total", "meet a cold start", "p99"], rows


def course() -> Table:
    """A course by the sizes of each scenario, beside what the plan says of one."""
    rows = []
    for name, requests in REQUESTS_OF_A_COURSE.items():
        report = read("answers")[name]["report"]
        courses = report["requests"] / requests * 30 / report["days"]
        hosted = {cost["name"]: cost["dollars"] for cost in report["hosted"]}
        same_model = next(cost["dollars"] for cost in report["hosted"] if cost["same_model"])
        tokens = report["tokens"] * 30 / report["days"] / courses / 1e6
        dollars = [hosted["Jina"], same_model, report["dollars"]["total"]]
        rows.append(
            [
                f"`{name}.toml`",
                f"{courses:,.0f}",
                f"{tokens:,.1f}",
                *(f"${part / courses:.3f}" for part in dollars),
            ]
        )
    rows.append(["the plan", "1,000", "", "$10", "", "$0.30"])
    head = ["a course", "courses a month", "million tokens"]
    return [*head, "Jina", "the same models hosted", "RunPod"], rows


def front(name: str) -> Table:
    rows = []
    for report in read("answers")[name]["front"]:
        endpoint = report["endpoint"]
        rows.append(
            [
                report["card"],
                f"{endpoint['min_workers']} to {endpoint['max_workers']}",
                f"{endpoint['idle_timeout']:g}",
                money(report["dollars"]["total"]),
                milliseconds(report["latency"]["p50"]),
                milliseconds(report["latency"]["p99"]),
                f"{report['cold_share']:.1%}",
            ]
        )
    head = [
        "card",
        "workers",
        "idle timeout, s",
        "$ a month",
        "p50",
        "p99",
        "meet a cold start",
    ]
    return head, rows


def validation() -> Table:
    rows = []
    for name, shape in read("validation")["shapes"].items():
        row = [name, f"{shape['requests']}"]
        for field, allowed in REQUIRED.items():
            simulated, measured = (
                statistics.median(run[field] for run in shape[kind])
                for kind in ("simulated", "measured")
            )
            runs = [run[field] for run in shape["measured"]]
            off = simulated / measured - 1
            mark = "" if abs(off) <= allowed else ", outside"
            digits = ".0f" if field == "paid" else ".2f"
            row += [
                f"{simulated:{digits}}",
                f"{measured:{digits}} ({min(runs):{digits}}–{max(runs):{digits}})",
                f"{off:+.0%}{mark}",
            ]
        rows.append(row)
    head = ["traffic", "requests"]
    for title in ("p50, s", "p99, s", "paid, s"):
        head += [f"{title}: simulated", "measured (from–to)", "off by"]
    return head, rows
