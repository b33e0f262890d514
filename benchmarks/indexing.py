"""How busy `bge index` keeps a worker, and its memory: `make bench-index`.

    busy      mixed texts into Qdrant's local mode, small shape of random weights: the share of the
              wall time in which the worker computed (by its own counter)
    memory    a million generated lines into a fake Qdrant server that discards them, with the
              miniature

The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from fakes.server_process import ServerProcess
from workload import ROOT, mixed_texts, model_settings, prepare

LINES = """
import json, sys
for number in range(int(sys.argv[1])):
    print(json.dumps({"_id": number, "text": f"текст номер {number}", "lesson": number % 40}))
"""
SMALL, MINIATURE = "checkpoints/bench/small", "models/miniature-packed"


def measure_busy(texts: int) -> dict[str, Any]:
    prepare("small", ROOT / SMALL)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = folder / "corpus.jsonl"
        lines = [{"_id": n, "text": f"{n} {text}"} for n, text in enumerate(mixed_texts(texts))]
        source.write_text("\n".join(map(json.dumps, lines)), "utf-8")
        with ServerProcess(model_settings(ROOT / f"{SMALL}/float32"), folder / "log") as server:
            server.wait_for(200)
            before = computing_seconds(server.url)
            options = [str(source), "--path", str(folder / "qdrant")]
            command = [*bge_command("index", server.url), *options]
            completed = subprocess.run(command, check=True, capture_output=True)
            report = json.loads(completed.stdout.splitlines()[-1])
            seconds = computing_seconds(server.url) - before
    return {
        "texts": report["written"],
        "texts per second": round(texts / report["seconds"], 1),
        "worker busy, share of the wall time": round(seconds / report["seconds"], 3),
    }


def measure_memory(lines: int) -> dict[str, Any]:
    """Return the peak memory of the `bge index` process, which reads the lines from a pipe."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(model_settings(ROOT / MINIATURE), Path(folder) / "log") as server,
        discarding_qdrant() as url,
    ):
        server.wait_for(200)
        start = time.perf_counter()
        peaks, report = run_index(lines, [*bge_command("index", server.url), "--qdrant-url", url])
        seconds = time.perf_counter() - start
    early = peaks[len(peaks) // 10]
    return {
        "lines": report["written"],
        "lines per second": round(lines / seconds),
        "peak memory after a tenth and at the end, MB": [early, max(peaks)],
    }


@contextmanager
def discarding_qdrant() -> Iterator[str]:
    """Run the fake Qdrant server and yield its URL."""
    command = [sys.executable, "-m", "fakes.qdrant_server", "--discard"]
    tests = ROOT / "tests"
    with subprocess.Popen(command, cwd=tests, stdout=subprocess.PIPE, text=True) as qdrant:
        try:
            assert qdrant.stdout is not None
            yield qdrant.stdout.readline().strip()
        finally:
            qdrant.terminate()


def run_index(lines: int, command: list[str]) -> tuple[list[int], dict[str, Any]]:
    """Return the peak memory, sampled once a second, and the report.

    Raises:
        CalledProcessError: the command failed.
    """
    pipe = subprocess.PIPE
    generator = subprocess.Popen([sys.executable, "-c", LINES, str(lines)], stdout=pipe)
    with (
        generator,
        subprocess.Popen(command, stdin=generator.stdout, stdout=pipe) as process,
    ):
        assert generator.stdout is not None
        assert process.stdout is not None
        generator.stdout.close()  # so that the generator stops when its reader does
        peaks = []
        while process.poll() is None:
            peaks.append(peak_mb(process.pid))
            time.sleep(1)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return peaks, json.loads(process.stdout.read().splitlines()[-1])


def computing_seconds(url: str) -> float:
    """Return the seconds the worker has spent on micro-batches."""
    text = httpx.get(f"{url}/metrics").text
    return float(re.search(r"^bge_micro_batch_seconds_total (\S+)", text, re.M)[1])  # type: ignore[index]


def peak_mb(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"VmHWM:\s*(\d+)", status)
    return round(int(match[1]) / 1e3) if match else 0


def bge_command(command: str, endpoint: str) -> list[str]:
    collection = ["--collection", "c", "--endpoint", endpoint]
    return [sys.executable, "-m", "bge_client", command, *collection]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=6000)
    parser.add_argument("--lines", type=int, default=1_000_000)
    args = parser.parse_args()
    results = {"busy": measure_busy(args.texts), "memory": measure_memory(args.lines)}
    for name, fields in results.items():
        print(name)
        for field, value in fields.items():
            print(f"  {field:45}{value}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
