"""The tables of README.md and benchmarks/README.md, written from `benchmarks/results/`.

    python benchmarks/tables.py            write them
    python benchmarks/tables.py --check    exit code 1 if they are not what the results say

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import projection
from results import FOLDER
from workload import ROOT

PAGES = ("README.md", "benchmarks/README.md")
OURS = "bge-serverless"
BLOCK = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
PACKAGES = {
    "ONNX Runtime": "onnxruntime",
    "Infinity": "infinity-emb",
    "sentence-transformers": "sentence-transformers",
    "FlagEmbedding": "FlagEmbedding",
}
MEASURED = ("per_second", "p50_ms", "p99_ms")
SHAPE_NAMES = {
    "small": "small shape: 6 layers, 384 wide",
    "full": "full shape: 24 layers, 1,024 wide",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def digits(value: float) -> str:
    """Three of them, at least."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def cpu() -> dict[str, Any]:
    return dict(json.loads((FOLDER / "cpu.json").read_text("utf-8")))


def gpu() -> str:
    """The full shape on each GPU that was measured."""
    others = [json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    return "\n".join(
        f"{one['machine']['gpu']}:\n\n{engine(one, 'full')}"
        for one in others
        if one["machine"]["gpu"] and "full" in one.get("engine", {})
    )


def engine(results: dict[str, Any], shape: str) -> str:
    """Contestants down, workloads across: seconds, and how many times as fast ours is."""
    columns = list(results["engine"][shape].values())
    names = sorted({name for one in columns for name in one["rows"]}, key=rank)
    rows = [[label(n, results), *(cell(one, n) for one in columns)] for n in names]
    product = [f"{one['share_of']['product']:.0%}" for one in columns]
    # Of few tokens alone: of long work, reading the weights is next to nothing.
    reading = [
        f"{one['share_of']['reading']:.0%}" if one["tokens"] < 100 else "" for one in columns
    ]
    rows.append(["ours, of the large product's rate", *product])
    rows.append(["ours, of reading every weight once", *reading])
    return table([SHAPE_NAMES[shape], *(one["about"] for one in columns)], rows)


def rank(name: str) -> int:
    order = [OURS, *PACKAGES, "ONNX Runtime int8"]
    return order.index(name)


def label(name: str, results: dict[str, Any]) -> str:
    if name not in PACKAGES:
        return name if name == OURS else f"{name}, another precision"
    return f"{name} {results['versions'][PACKAGES[name]]}"


def cell(one: dict[str, Any], name: str) -> str:
    row = one["rows"].get(name)
    if row is None:
        return ""
    seconds = digits(row["median"])
    ratio = row["ours_is_faster_by"]
    return seconds if name == OURS else f"{seconds} ({ratio:.{1 if ratio >= 10 else 2}f}×)"


def spread() -> str:
    """Every round's seconds, the memory, and how far the outputs are apart."""
    rows = [
        [shape, workload, name, seconds(row), f"{row['peak_mb']:,}", f"{row['difference']:.0e}"]
        for shape, measured in cpu()["engine"].items()
        for workload, one in measured.items()
        for name, row in one["rows"].items()
    ]
    return table(["shape", "workload", "", "seconds", "peak MB", "differs by"], rows)


def seconds(row: dict[str, Any]) -> str:
    return ", ".join(f"{each:.4g}" for each in row["seconds"])


def closed() -> str:
    rows = []
    for name, found in cpu()["serving"]["small"].items():
        rounds = sorted(found["closed"], key=lambda one: float(one["per_second"]))
        middle = rounds[len(rounds) // 2]
        rows.append([name, *(digits(middle[field]) for field in MEASURED)])
    return table(["64 callers at once", "queries a second", "p50 ms", "p99 ms"], rows)


def offered() -> str:
    serving = cpu()["serving"]["small"]
    head = ["queries offered a second"]
    for name in serving:
        head += [f"{name}: answered a second", "p50 ms", "p99 ms", "refused or given up"]
    rows = []
    for same_rate in zip(*(found["offered"] for found in serving.values()), strict=True):
        row = [digits(same_rate[0]["offered"])]
        for one in same_rate:
            lost = {kind: count for kind, count in one["statuses"].items() if kind != "200"}
            said = ", ".join(f"{kind}: {count:,}" for kind, count in lost.items())
            row += [*(digits(one[field]) for field in MEASURED), said]
        rows.append(row)
    return table(head, rows)


def queue() -> str:
    rows = [
        [form, digits(one["median_ms"]), digits(one["outside_the_model_ms"]), f"{one['bytes']:,}"]
        for form, one in cpu()["queue"].items()
    ]
    waited = [[name, digits(one["median"])] for name, one in cpu()["backlog"].items()]
    return (
        table(["job", "ms", "of them outside the model", "bytes of the reply"], rows)
        + "\n"
        + table(["waiting in RunPod's queue", "answered a second"], waited)
    )


def cold() -> str:
    measured = cpu()["cold"]
    return (
        starts(measured["page cache warm"], "page cache warm", "of FlagEmbedding's")
        + "\n"
        + starts(measured["from disk"], "weights out of the page cache", "of reading the files")
    )


def starts(measured: dict[str, Any], where: str, beside: str) -> str:
    rows = []
    for name, one in measured.items():
        spread = f"{min(one['seconds']):.2f}–{max(one['seconds']):.2f}"
        rows.append([name, f"{one['median']:.2f}", spread, f"{one['share']:.2f}"])
    return table([where, "seconds", "from–to", beside], rows)


def beside() -> str:
    """A query alone and beside the bulk, at our server and at Infinity's."""
    rows = []
    for name, found in cpu()["beside a bulk"].items():
        if name != "overhead":
            given_up = next(field for field in found if field.startswith("gave up"))
            times = [found[when] for when in ("alone, s", "beside the bulk, s")]
            shown = [f"{one[p]:.3f}" for one in times for p in ("p50", "p99")]
            batch = found.get("a micro-batch, s")
            rows.append(
                [
                    name,
                    *([*shown[:2], given_up, given_up] if found[given_up] else shown),
                    "" if batch is None else f"{batch:.3f}",
                ]
            )
    head = ["a query, s", "alone, p50", "p99", "beside the bulk, p50", "p99", "one micro-batch"]
    return table(head, rows)


def projected() -> str:
    rows = []
    for row in projection.projection():
        dollars = row["dollars_per_million"]
        rows.append(
            [
                row["gpu"],
                f"{1e3 * round(row['chunks_tokens_per_second'] / 1e3):,.0f}",
                f"{1e3 * round(row['mixed_tokens_per_second'] / 1e3):,.0f}",
                "" if dollars is None else f"{dollars:.4f}",
                "" if dollars is None else f"{projection.HOSTED / dollars:.0f}",
                f"{row['32 texts']:.0f}",
                f"{row['100 documents']:.0f}",
            ]
        )
    head = [
        "GPU",
        "tokens a second, chunks",
        "mixed",
        "$ a million tokens, mixed",
        "hosted costs times as much",
        "32 mixed texts, ms",
        "100 documents of 128 tokens, ms",
    ]
    return f"Shares: {projection.shares().source}.\n\n" + table(head, rows)


TABLES: dict[str, Callable[[], str]] = {
    "engine-small": lambda: engine(cpu(), "small"),
    "engine-full": lambda: engine(cpu(), "full"),
    "gpu": gpu,
    "spread": spread,
    "closed": closed,
    "offered": offered,
    "queue": queue,
    "cold": cold,
    "beside-a-bulk": beside,
    "projected": projected,
}


def rewritten(page: str) -> str:
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    for name in PAGES:
        path = ROOT / name
        before = path.read_text("utf-8")
        after = rewritten(before)
        if given.check and after != before:
            sys.exit(f"{name} is not what the results say: python benchmarks/tables.py")
        path.write_text(after, "utf-8")


if __name__ == "__main__":
    main()
