"""How busy `bge index` keeps a worker, and its memory: `make bench-index`.

    busy      mixed texts into Qdrant's local mode, small shape of random weights: the share of the
              wall time in which the worker computed (by its own counter)
    memory    a million generated lines into a fake Qdrant server that discards them, with the
              miniature

The last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

from processes import http_server, read_metric, running
from results import options, report, with_date
from workload import BENCH, MINIATURE, ROOT, mixed_texts, model_settings, prepare

LINES = """
import json, sys
for number in range(int(sys.argv[1])):
    print(json.dumps({"_id": number, "text": f"текст номер {number}", "lesson": number % 40}))
"""
PIPE = subprocess.PIPE


def index_command(endpoint: str) -> list[str]:
    options = ["--collection", "c", "--endpoint", endpoint]
    return [sys.executable, "-m", "bge_client", "index", *options]


def measure_busy(texts: int) -> dict[str, Any]:
    prepare("small", BENCH / "small")
    with (
        tempfile.TemporaryDirectory() as folder,
        http_server(model_settings(BENCH / "small" / "float32")) as server,
    ):
        source = Path(folder) / "corpus.jsonl"
        lines = [{"_id": n, "text": f"{n} {text}"} for n, text in enumerate(mixed_texts(texts))]
        source.write_text("\n".join(map(json.dumps, lines)), "utf-8")
        before = computing_seconds(server.url)
        command = [*index_command(server.url), str(source), "--path", f"{folder}/qdrant"]
        completed = subprocess.run(command, check=True, capture_output=True)
        computing = computing_seconds(server.url) - before
    report = json.loads(completed.stdout.splitlines()[-1])
    return {
        "texts": report["written"],
        "texts per second": round(texts / report["seconds"], 1),
        "worker busy, share of the wall time": round(computing / report["seconds"], 3),
    }


def computing_seconds(url: str) -> float:
    """Return the seconds the worker has spent on micro-batches."""
    return read_metric(url, "bge_micro_batch_seconds_total")[""]


def measure_memory(lines: int) -> dict[str, Any]:
    """Return the peak memory of the `bge index` process, which reads the lines from a pipe."""
    fake_qdrant = [sys.executable, "-m", "fakes.qdrant_server", "--discard"]
    with (
        http_server(model_settings(MINIATURE)) as server,
        running(fake_qdrant, cwd=ROOT / "tests", stdout=PIPE, text=True) as qdrant,
    ):
        url = qdrant.stdout.readline().strip()
        start = perf_counter()
        peaks, report = run_index(lines, [*index_command(server.url), "--qdrant-url", url])
        seconds = perf_counter() - start
    early = peaks[len(peaks) // 10]
    return {
        "lines": report["written"],
        "lines per second": round(lines / seconds),
        "peak memory after a tenth and at the end, MB": [early, max(peaks)],
    }


def run_index(lines: int, command: list[str]) -> tuple[list[int], dict[str, Any]]:
    """Return the peak memory, sampled once a second, and the report.

    Raises:
        CalledProcessError: the command failed.
    """
    with (
        running([sys.executable, "-c", LINES, lines], stdout=PIPE) as generator,
        running(command, stdin=generator.stdout, stdout=PIPE) as process,
    ):
        generator.stdout.close()  # so that the generator stops when its reader does
        peaks = []
        while process.poll() is None:
            peaks.append(peak_mb(process.pid))
            time.sleep(1)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return peaks, json.loads(process.stdout.read().splitlines()[-1])


def peak_mb(pid: int) -> int:
    """Return the peak memory of a process, 0 if it has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"VmHWM:\s*(\d+)", status)
    return round(int(match[1]) / 1e3) if match else 0


def measure(texts: int, lines: int) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "index", {"busy": with_date(measure_busy(texts))}
    yield "index", {"memory": with_date(measure_memory(lines))}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--texts", type=int, default=6000)
    parser.add_argument("--lines", type=int, default=1_000_000)
    args = parser.parse_args()
    report(measure(args.texts, args.lines), save=args.save)


if __name__ == "__main__":
    main()
