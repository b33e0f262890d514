"""What Ray costs `bge bulk` on this machine: `make bench-bulk`.

    actors      one and two CPU actors of one thread, beside the engine alone on one thread
    rows        a million short rows, with an engine that computes nothing
    partitions  partitions of one row: how many the driver schedules

The last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from process_tree import Process, ProcessTree
from results import options, report, with_date
from workload import BENCH, MINIATURE, ROOT, mixed_texts, prepare

JOB = ROOT / "benchmarks" / "bulk_job.py"
SMALL = BENCH / "small" / "float32" / "bge-m3"
MEDIAN_WORDS = 3  # of 20,000 rows, so that one thread computes them in half a minute
ROUNDS = 2
PARTITION_ROWS = 500  # of the actors' runs
WARM_UP = 5  # partitions that count in no rate: processes are still starting
SHORT_WORDS = 4  # of a million rows, at the median


@dataclass(frozen=True)
class Run:
    """A process that has ended: its partitions as `bulk_job.py` prints them, in order."""

    start: float
    partitions: list[dict[str, Any]]
    tree: ProcessTree

    @property
    def compute_rate(self) -> float:
        """Tokens a second of an engine while it computes."""
        seconds = sum(partition["seconds"] for partition in self.partitions)
        return sum(partition["tokens"] for partition in self.partitions) / seconds

    def steady(self, unit: str) -> float:
        """Return the rows, tokens or partitions a second after the first partitions."""
        first, *rest = self.partitions[WARM_UP:]
        amount = sum(partition.get(unit, 1) for partition in rest)
        return amount / (rest[-1]["time"] - first["time"])

    @property
    def seconds_before(self) -> float:
        """The seconds from the start of the process until the first partition is embedded."""
        first = self.partitions[0]
        return float(first["time"] - self.start - first["seconds"])

    @property
    def roles(self) -> dict[str, list[Process]]:
        actors = {partition["actor"] for partition in self.partitions}
        return self.tree.by_role(actors)

    def cpu(self) -> dict[str, float]:
        """Return the seconds of CPU time by role."""
        roles = self.roles.items()
        return {role: round(sum(p.cpu for p in processes), 1) for role, processes in roles}

    def memory(self) -> dict[str, dict[str, float]]:
        """Return MB, and the MB that a minute adds after the first partitions, by role."""
        first, last = self.partitions[WARM_UP]["time"], self.partitions[-1]["time"]
        samples = {role: self.tree.memory(processes) for role, processes in self.roles.items()}
        samples["object store"] = self.tree.shared_mb
        return {
            role: {
                "peak_mb": round(max(memory)),
                "mb_per_minute": round(self.tree.slope(memory, first, last), 1),
            }
            for role, memory in samples.items()
        }


def run(source: Path, model: Path, partition_rows: int, *arguments: object) -> Run:
    """Run `bulk_job.py` to its end.

    Raises:
        CalledProcessError: it failed.
    """
    fixed = ["--model", model, "--partition-rows", partition_rows]
    command = [str(part) for part in (sys.executable, JOB, source, *fixed, *arguments)]
    start = time.monotonic()
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        ProcessTree(process.pid) as tree,
    ):
        partitions = [json.loads(line) for line in process.stdout]
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Run(start, partitions, tree)


def write_rows(path: Path, texts: Sequence[str]) -> Path:
    lines = (json.dumps({"_id": n, "text": text}) for n, text in enumerate(texts))
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


def measure_actors(rows: int, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield an actor beside the engine alone, in turn, and then two actors."""
    prepare("small", BENCH / "small")
    source = write_rows(folder / "rows.jsonl", mixed_texts(rows, MEDIAN_WORDS))
    alone, jobs = [], []
    for number in range(ROUNDS):
        alone.append(run(source, SMALL, PARTITION_ROWS))
        jobs.append(run(source, SMALL, PARTITION_ROWS, "--to", folder / f"one-{number}"))
    tokens = sum(partition["tokens"] for partition in alone[0].partitions)
    entry = {"rows": rows, "tokens": tokens, **beside_alone(alone, jobs), **costs(jobs[-1])}
    yield "one actor", with_date(entry)
    both = run(source, SMALL, PARTITION_ROWS, "--to", folder / "two", "--actors", 2)
    rate = statistics.median(run.compute_rate for run in alone)
    entry = {
        "rows": rows,
        "tokens_per_second": round(both.steady("tokens")),
        "actor_tokens_per_second": round(both.compute_rate),
        "shares": [round(both.steady("tokens") / rate, 3)],
    }
    yield "two actors", with_date(entry | costs(both))


def beside_alone(alone: Sequence[Run], jobs: Sequence[Run]) -> dict[str, Any]:
    """Return the rates of each round, and their shares of the engine's: of the actor while it
    computes, and of the whole job."""
    pairs = list(zip(alone, jobs, strict=True))
    return {
        "alone_tokens_per_second": [round(run.compute_rate) for run in alone],
        "actor_tokens_per_second": [round(run.compute_rate) for run in jobs],
        "tokens_per_second": [round(run.steady("tokens")) for run in jobs],
        "actor_shares": [round(job.compute_rate / engine.compute_rate, 3) for engine, job in pairs],
        "shares": [round(job.steady("tokens") / engine.compute_rate, 3) for engine, job in pairs],
    }


def costs(run: Run) -> dict[str, Any]:
    return {
        "seconds_before": round(run.seconds_before, 1),
        "cpu_seconds": run.cpu(),
        "memory": run.memory(),
    }


def measure_rows(rows: int, folder: Path) -> dict[str, Any]:
    """Measure short rows through two actors that compute nothing, in partitions as by default."""
    source = write_rows(folder / "short.jsonl", mixed_texts(rows, SHORT_WORDS))
    job = run(source, MINIATURE / "bge-m3", 8192, "--to", folder / "short", "--actors", 2, "--fake")
    written = sum(partition["rows"] for partition in job.partitions)
    rate = {"rows": written, "rows_per_second": round(job.steady("rows"))}
    return with_date(rate | costs(job))


def measure_partitions(partitions: int, folder: Path) -> dict[str, Any]:
    """Measure partitions of a row. `driver_ms`: CPU time of the driver for each."""
    source = write_rows(folder / "tiny.jsonl", mixed_texts(partitions, SHORT_WORDS))
    job = run(source, MINIATURE / "bge-m3", 1, "--to", folder / "tiny", "--actors", 2, "--fake")
    warm = job.partitions[WARM_UP:]
    entry = {
        "partitions": len(job.partitions),
        "per_second": round(job.steady("partitions"), 1),
        "driver_ms": round(1e3 * (warm[-1]["cpu"] - warm[0]["cpu"]) / (len(warm) - 1), 2),
    }
    return with_date(entry | costs(job))


def measure(parts: Sequence[str], rows: int, short: int, tiny: int, folder: Path) -> Any:
    if "actors" in parts:
        for name, entry in measure_actors(rows, folder):
            yield "bulk", {name: entry}
    if "rows" in parts:
        yield "bulk", {"short rows": measure_rows(short, folder)}
    if "partitions" in parts:
        yield "bulk", {"partitions of a row": measure_partitions(tiny, folder)}


def main() -> None:
    parser = options(__doc__)
    parts = ("actors", "rows", "partitions")
    parser.add_argument("parts", nargs="*", default=parts, help=f"of {', '.join(parts)}")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--short-rows", type=int, default=1_000_000)
    parser.add_argument("--partitions", type=int, default=2000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sizes = (args.rows, args.short_rows, args.partitions)
        report(measure(args.parts, *sizes, Path(name)), save=args.save)


if __name__ == "__main__":
    main()
