"""Write the tables of README.md and docs/benchmarks.md from `benchmarks/results/`.

    python benchmarks/tables.py            write the tables
    python benchmarks/tables.py --check    exit with code 1 if a table differs from the results

A table is the text between `<!-- table: NAME -->` and `<!-- end of table -->`.
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

PAGES = ("README.md", "docs/benchmarks.md")
OURS = "bge-serverless"
BLOCK = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
PACKAGES = {
    "ONNX Runtime": "onnxruntime",
    "Infinity": "infinity-emb",
    "sentence-transformers": "sentence-transformers",
    "FlagEmbedding": "FlagEmbedding",
}
FIELDS = ("per_second", "p50_ms", "p99_ms")
SHAPE_NAMES = {
    "small": "small shape: 6 layers, 384 wide",
    "full": "full shape: 24 layers, 1,024 wide",
}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def digits(value: float) -> str:
    """Format a number with at least three significant digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def cpu_results() -> dict[str, Any]:
    return dict(json.loads((FOLDER / "cpu.json").read_text("utf-8")))


def gpu() -> str:
    """Return the full shape's table of each measured GPU."""
    results = [json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    return "\n".join(
        f"{entry['machine']['gpu']}:\n\n{engine(entry, 'full')}"
        for entry in results
        if entry["machine"]["gpu"] and "full" in entry.get("engine", {})
    )


def engine(results: dict[str, Any], shape: str) -> str:
    """Contestants by workloads: seconds, and how many times as fast our engine is."""
    columns = list(results["engine"][shape].values())
    names = sorted({name for entry in columns for name in entry["rows"]}, key=rank)
    rows = [[label(n, results), *(cell(entry, n) for entry in columns)] for n in names]
    product = [f"{entry['share_of']['product']:.0%}" for entry in columns]
    # Only for few tokens: in longer work, reading the weights takes almost no time.
    reading = [
        f"{entry['share_of']['reading']:.0%}" if entry["tokens"] < 100 else "" for entry in columns
    ]
    rows.append(["ours, of the large product's rate", *product])
    rows.append(["ours, of reading every weight once", *reading])
    return table([SHAPE_NAMES[shape], *(entry["about"] for entry in columns)], rows)


def rank(name: str) -> int:
    order = [OURS, *PACKAGES, "ONNX Runtime int8"]
    return order.index(name)


def label(name: str, results: dict[str, Any]) -> str:
    if name not in PACKAGES:
        return name if name == OURS else f"{name}, another precision"
    return f"{name} {results['versions'][PACKAGES[name]]}"


def cell(entry: dict[str, Any], name: str) -> str:
    row = entry["rows"].get(name)
    if row is None:
        return ""
    seconds = digits(row["median"])
    ratio = row["ours_is_faster_by"]
    return seconds if name == OURS else f"{seconds} ({ratio:.{1 if ratio >= 10 else 2}f}×)"


def spread() -> str:
    """Seconds of every round, the memory, and the difference of the outputs."""
    rows = [
        [shape, workload, name, seconds(row), f"{row['peak_mb']:,}", f"{row['difference']:.0e}"]
        for shape, measured in cpu_results()["engine"].items()
        for workload, entry in measured.items()
        for name, row in entry["rows"].items()
    ]
    return table(["shape", "workload", "", "seconds", "peak MB", "differs by"], rows)


def seconds(row: dict[str, Any]) -> str:
    return ", ".join(f"{value:.4g}" for value in row["seconds"])


def closed() -> str:
    rows = []
    for name, entries in cpu_results()["serving"]["small"].items():
        rounds = sorted(entries["closed"], key=lambda entry: float(entry["per_second"]))
        middle = rounds[len(rounds) // 2]
        rows.append([name, *(digits(middle[field]) for field in FIELDS)])
    return table(["64 callers at once", "queries a second", "p50 ms", "p99 ms"], rows)


def offered() -> str:
    serving = cpu_results()["serving"]["small"]
    header = ["queries offered a second"]
    for name in serving:
        header += [f"{name}: answered a second", "p50 ms", "p99 ms", "refused or given up"]
    rows = []
    for rounds in zip(*(entries["offered"] for entries in serving.values()), strict=True):
        row = [digits(rounds[0]["offered"])]
        for entry in rounds:
            lost = {kind: count for kind, count in entry["statuses"].items() if kind != "200"}
            errors = ", ".join(f"{kind}: {count:,}" for kind, count in lost.items())
            row += [*(digits(entry[field]) for field in FIELDS), errors]
        rows.append(row)
    return table(header, rows)


def queue() -> str:
    rows = [
        [form, digits(job["median_ms"]), digits(job["outside_the_model_ms"]), f"{job['bytes']:,}"]
        for form, job in cpu_results()["queue"].items()
    ]
    backlog = [[name, digits(entry["median"])] for name, entry in cpu_results()["backlog"].items()]
    return (
        table(["job", "ms", "of them outside the model", "bytes of the reply"], rows)
        + "\n"
        + table(["waiting in RunPod's queue", "answered a second"], backlog)
    )


def cold() -> str:
    measured = cpu_results()["cold"]
    return (
        cold_table(measured["page cache warm"], "page cache warm", "of FlagEmbedding's")
        + "\n"
        + cold_table(measured["from disk"], "weights out of the page cache", "of reading the files")
    )


def cold_table(measured: dict[str, Any], title: str, ratio_title: str) -> str:
    rows = []
    for name, entry in measured.items():
        spread = f"{min(entry['seconds']):.2f}–{max(entry['seconds']):.2f}"
        rows.append([name, f"{entry['median']:.2f}", spread, f"{entry['share']:.2f}"])
    return table([title, "seconds", "from–to", ratio_title], rows)


def beside_bulk() -> str:
    """Latency of a query alone and beside bulk requests."""
    rows = []
    for name, entries in cpu_results()["beside a bulk"].items():
        if name != "overhead":
            given_up = next(field for field in entries if field.startswith("gave up"))
            times = [entries[when] for when in ("alone, s", "beside the bulk, s")]
            cells = [f"{entry[p]:.3f}" for entry in times for p in ("p50", "p99")]
            batch = entries.get("a micro-batch, s")
            rows.append(
                [
                    name,
                    *([*cells[:2], given_up, given_up] if entries[given_up] else cells),
                    "" if batch is None else f"{batch:.3f}",
                ]
            )
    header = ["a query, s", "alone, p50", "p99", "beside the bulk, p50", "p99", "one micro-batch"]
    return table(header, rows)


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
                "" if dollars is None else f"{projection.HOSTED_PRICE / dollars:.0f}",
                f"{row['32 texts']:.0f}",
                f"{row['100 documents']:.0f}",
            ]
        )
    header = [
        "GPU",
        "tokens a second, chunks",
        "mixed",
        "$ a million tokens, mixed",
        "hosted costs times as much",
        "32 mixed texts, ms",
        "100 documents of 128 tokens, ms",
    ]
    return f"Shares: {projection.find_shares().source}.\n\n" + table(header, rows)


TABLES: dict[str, Callable[[], str]] = {
    "engine-small": lambda: engine(cpu_results(), "small"),
    "engine-full": lambda: engine(cpu_results(), "full"),
    "gpu": gpu,
    "spread": spread,
    "closed": closed,
    "offered": offered,
    "queue": queue,
    "cold": cold,
    "beside-a-bulk": beside_bulk,
    "projected": projected,
}


def with_tables(page: str) -> str:
    return BLOCK.sub(lambda entries: f"{entries[1]}{TABLES[entries[2]]()}{entries[3]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for name in PAGES:
        path = ROOT / name
        before = path.read_text("utf-8")
        after = with_tables(before)
        if args.check and after != before:
            sys.exit(f"{name} differs from the results: run python benchmarks/tables.py")
        path.write_text(after, "utf-8")


if __name__ == "__main__":
    main()
