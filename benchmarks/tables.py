"""Write the tables of the documents from `benchmarks/results/`: `python benchmarks/tables.py`.

A table is the text between `<!-- table: NAME -->` and `<!-- end of table -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bulk_tables
import plan_tables
from contestants import CONTESTANTS, OURS, OURS_INT8
from projection import HOSTED_PRICE, find_shares, project
from results import FOLDER
from workload import ROOT

DOCUMENTS = ("README.md", "docs/*.md", "benchmarks/README.md")
BLOCK = re.compile(r"(<!-- table: ([a-z0-9-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
FIELDS = ("per_second", "p50_ms", "p99_ms")
SHAPE_NAMES = {
    "small": "small shape: 6 layers, 384 wide",
    "full": "full shape: 24 layers, 1,024 wide",
}
WEIGHTS = {
    "small": "random, small shape",
    "full": "random, full shape",
    "minilm": "trained: all-MiniLM-L6-v2",
}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def digits(value: float) -> str:
    """Format a number with at least three significant digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def all_results() -> list[dict[str, Any]]:
    return [json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))]


def cpu_results(section: str) -> dict[str, Any]:
    """Return the results of the first processor that has this section.

    Raises LookupError: none has.
    """
    for content in all_results():
        if content["machine"]["gpu"] is None and section in content:
            return content
    raise LookupError(f"`{FOLDER}` has no section `{section}` of a CPU: measure it with --save")


def cpu(section: str) -> dict[str, Any]:
    return dict(cpu_results(section)[section])


def gpu_results() -> list[dict[str, Any]]:
    return [content for content in all_results() if "gpu" in content]


def gpus() -> str:
    """Return the cards that `make bench-gpu` has run on."""
    cards = [
        f"{content['machine']['gpu']} ({content['gpu']['card']['date']}, "
        f"PyTorch {content['versions']['torch']})"
        for content in gpu_results()
    ]
    measured = ", ".join(cards) or "none"
    return f"GPUs that the engine has run on, with random weights: {measured}.\n"


def gpu() -> str:
    """Return the tables of each measured GPU."""
    return "\n".join(gpu_tables(content) for content in gpu_results())


def gpu_tables(content: dict[str, Any]) -> str:
    """Return the tables of the steps that a card has results of."""
    steps = content["gpu"]
    return "\n".join(make(without_date(steps[name])) for name, make in GPU_TABLES if name in steps)


def without_date(step: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in step.items() if key != "date"}


def card(step: dict[str, Any]) -> str:
    return (
        f"**{step['name']}**, PyTorch {step['torch']}. Large fp16 product "
        f"{step['gflops'] / 1e3:.0f} TFLOP/s, copy {step['copy_gb_s'] / 1e3:.1f} TB/s.\n"
    )


def attention(step: dict[str, Any]) -> str:
    rows = [
        [name, entry["fault"] or f"{entry['largest_difference']:.0e}", digits(entry["seconds"])]
        for name, entry in step.items()
    ]
    return table(
        ["attention", "largest difference from fp32, or the fault", "first check, s"], rows
    )


def throughput(step: dict[str, Any]) -> str:
    budgets = [*next(iter(step.values()))]
    title = "tokens a second (share of the large product), by micro-batch"
    rows = [[name, *map(rate, entries.values())] for name, entries in step.items()]
    return table([title, *budgets], rows)


def peers(step: dict[str, Any]) -> str:
    rows = [
        [f"{task}: {name}", f"{row['tokens_per_second']:,}", peer_cell(name, row)]
        for task, entries in step.items()
        for name, row in entries.items()
    ]
    title = "from texts, through the worker's queue"
    return table([title, "tokens a second", "seconds (ratio)"], rows)


def outputs(step: dict[str, Any]) -> str:
    rows = [
        [name.removeprefix("Outputs.").lower().replace("|", ", "), f"{row['tokens_per_second']:,}"]
        for name, row in step.items()
    ]
    return table(["mixed lengths, by outputs", "tokens a second"], rows)


def query(step: dict[str, Any]) -> str:
    fields = ("median_ms", "p99_ms", "device_ms")
    rows = [[name, *(digits(row[field]) for field in fields)] for name, row in step.items()]
    return table(["one query of 12 tokens", "p50 ms", "p99 ms", "of the device, ms"], rows)


def parity(step: dict[str, Any]) -> str:
    rows = [[name, *map(str, row.values())] for name, row in step.items()]
    title = "against FlagEmbedding in fp32"
    return table([title, "dense cosine", "ColBERT", "weight", "logit"], rows)


GPU_TABLES = (
    ("card", card),
    ("attention", attention),
    ("throughput", throughput),
    ("peers", peers),
    ("outputs", outputs),
    ("query", query),
    ("parity", parity),
)


def rate(entry: dict[str, Any]) -> str:
    return f"{entry['tokens_per_second']:,} ({entry['share_of_product']:.0%})"


def peer_cell(name: str, row: dict[str, Any]) -> str:
    seconds = digits(row["seconds"])
    return seconds if name == OURS else f"{seconds} ({row['ours_is_faster_by']:.2f}×)"


def engine(results: dict[str, Any], shape: str) -> str:
    """Contestants by workloads: seconds, and how many times as fast our engine is."""
    columns = list(results["engine"][shape].values())
    versions = results["versions"]
    rows = [
        [label(name, versions), *(cell(entry, name) for entry in columns)]
        for name in CONTESTANTS
        if any(name in entry["rows"] for entry in columns)
    ]
    product = [f"{entry['share_of']['product']:.0%}" for entry in columns]
    # Only for few tokens: in longer work, reading the weights takes almost no time.
    reading = [
        f"{entry['share_of']['reading']:.0%}" if entry["tokens"] < 100 else "" for entry in columns
    ]
    rows.append(["ours, of the large product's rate", *product])
    rows.append(["ours, of reading every weight once", *reading])
    machine = results["machine"]
    title = f"{SHAPE_NAMES[shape]}; {machine['cpu']}, {machine['threads']} threads"
    return table([title, *(entry["about"] for entry in columns)], rows)


def label(name: str, versions: dict[str, str]) -> str:
    """Return a contestant's name with its package's version."""
    package = CONTESTANTS[name].package
    return f"{name} ({package} {versions[package]})" if package in versions else name


def cell(entry: dict[str, Any], name: str) -> str:
    row = entry["rows"].get(name)
    if row is None:
        return ""
    seconds = digits(row["median"])
    if name in (OURS, OURS_INT8):
        return seconds
    ratio = row["ours_is_faster_by"]
    return f"{seconds} ({ratio:.{1 if ratio >= 10 else 2}f}×)"


def int8_quality() -> str:
    """What each int8 contestant loses, by weights."""
    fields = {
        "cosine_mean": "cosine, mean",
        "cosine_min": "smallest",
        "top_10": "of the 10 nearest",
        "sparse_mean": "sparse weight off by, mean",
        "sparse_max": "largest",
        "logit_mean": "logit off by, mean",
        "logit_max": "largest",
    }
    rows = [
        [WEIGHTS[shape], name, *(str(entry.get(field, "")) for field in fields)]
        for shape, entries in cpu("int8 quality").items()
        for name, entry in entries.items()
    ]
    return table(["weights", "", *fields.values()], rows)


def spread() -> str:
    """Seconds of every round, the memory, and the difference of the outputs."""
    rows = [
        [
            shape,
            workload,
            name,
            ", ".join(f"{value:.4g}" for value in row["seconds"]),
            f"{row['peak_mb']:,}",
            f"{row['difference']:.0e}",
        ]
        for shape, measured in cpu("engine").items()
        for workload, entry in measured.items()
        for name, row in entry["rows"].items()
    ]
    return table(["shape", "workload", "", "seconds", "peak MB", "differs by"], rows)


def closed() -> str:
    rows = []
    for name, entries in cpu("serving")["small"].items():
        rounds = sorted(entries["closed"], key=lambda entry: float(entry["per_second"]))
        middle = rounds[len(rounds) // 2]
        rows.append([name, *(digits(middle[field]) for field in FIELDS)])
    return table(["64 callers at once", "queries a second", "p50 ms", "p99 ms"], rows)


def offered() -> str:
    serving = cpu("serving")["small"]
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
        for form, job in cpu("queue").items()
    ]
    backlog = [[name, digits(entry["median"])] for name, entry in cpu("backlog").items()]
    return (
        table(["job", "ms", "of them outside the model", "bytes of the reply"], rows)
        + "\n"
        + table(["waiting in RunPod's queue", "answered a second"], backlog)
    )


def cold() -> str:
    measured = cpu("cold")
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
    for name, entry in cpu("beside a bulk").items():
        if name == "overhead":
            continue
        times = [entry[when] for when in ("alone, s", "beside the bulk, s")]
        cells = [f"{percentiles[p]:.3f}" for percentiles in times for p in ("p50", "p99")]
        given_up = next(field for field in entry if field.startswith("gave up"))
        if entry[given_up]:
            cells[2:] = [given_up] * 2
        batch = entry.get("a micro-batch, s")
        rows.append([name, *cells, "" if batch is None else f"{batch:.3f}"])
    header = ["a query, s", "alone, p50", "p99", "beside the bulk, p50", "p99", "one micro-batch"]
    return table(header, rows)


def projected() -> str:
    shares = find_shares()
    rows = []
    for row in project(shares):
        dollars = row.dollars_per_million
        prices = (
            ["", ""] if dollars is None else [f"{dollars:.4f}", f"{HOSTED_PRICE / dollars:.0f}"]
        )
        rates = [f"{1e3 * round(rate / 1e3):,.0f}" for rate in (row.chunks, row.mixed)]
        latencies = [f"{row.texts_ms:.0f}", f"{row.documents_ms:.0f}"]
        rows.append([row.gpu, *rates, *prices, *latencies])
    header = [
        "GPU",
        "tokens a second, chunks",
        "mixed",
        "$ a million tokens, mixed",
        "hosted costs times as much",
        "32 mixed texts, ms",
        "100 documents of 128 tokens, ms",
    ]
    return f"Shares: {shares.source}.\n\n" + table(header, rows)


TABLES: dict[str, Callable[[], str]] = {
    "engine-small": lambda: engine(cpu_results("engine"), "small"),
    "engine-full": lambda: engine(cpu_results("engine"), "full"),
    "gpu": gpu,
    "gpus": gpus,
    "int8-quality": int8_quality,
    "spread": spread,
    "closed": closed,
    "offered": offered,
    "queue": queue,
    "cold": cold,
    "beside-a-bulk": beside_bulk,
    "projected": projected,
    "plan-cards": lambda: table(*plan_tables.cards()),
    "plan-answers": lambda: table(*plan_tables.answers()),
    "plan-course": lambda: table(*plan_tables.course()),
    "plan-starts": lambda: table(*plan_tables.starts()),
    "plan-advice": plan_tables.advice,
    "plan-front-courses": lambda: table(*plan_tables.front("courses")),
    "plan-front-search": lambda: table(*plan_tables.front("search_box")),
    "plan-validation": lambda: table(*plan_tables.validation()),
    "bulk-row": lambda: table(*bulk_tables.row()),
    "bulk-work": lambda: table(*bulk_tables.work()),
    "bulk-storage": lambda: table(*bulk_tables.storage()),
    "bulk-actors": lambda: table(*bulk_tables.actors(cpu_results("bulk"))),
    "bulk-memory": lambda: table(*bulk_tables.memory(cpu_results("bulk"))),
    "bulk-scale": lambda: table(*bulk_tables.scale(cpu_results("bulk"))),
    "bulk-qdrant": lambda: table(*bulk_tables.qdrant()),
}


def pages() -> list[Path]:
    """Return the documents with tables."""
    paths = [path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))]
    return [path for path in paths if BLOCK.search(path.read_text("utf-8"))]


def with_tables(page: str) -> str:
    return BLOCK.sub(lambda block: f"{block[1]}{TABLES[block[2]]()}{block[3]}", page)


def main() -> None:
    for path in pages():
        path.write_text(with_tables(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
