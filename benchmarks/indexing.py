"""How well `bge index` keeps a worker busy, and in how much memory: `make bench-index`.

    busy      mixed texts into Qdrant's local mode: of the wall time, the share in which the worker
              was computing (its own counter), once it has loaded
    memory    a million generated lines into a stand-in of Qdrant's server that forgets them

The first on the small shape of random weights, the second on the miniature. The last line printed
is one JSON object.
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
from workload import ROOT, mixed_texts, models_in, prepare

LINES = """
import json, sys
for number in range(int(sys.argv[1])):
    print(json.dumps({"_id": number, "text": f"текст номер {number}", "lesson": number % 40}))
"""
SMALL, MINIATURE = "checkpoints/bench/small", "models/miniature-packed"


def busy(texts: int) -> dict[str, Any]:
    prepare("small", ROOT / SMALL)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = folder / "corpus.jsonl"
        lines = [{"_id": n, "text": f"{n} {text}"} for n, text in enumerate(mixed_texts(texts))]
        source.write_text("\n".join(map(json.dumps, lines)), "utf-8")
        with ServerProcess(models_in(ROOT / f"{SMALL}/float32"), folder / "log") as server:
            server.wait_for(200)
            before = computing(server.url)
            command = [*bge("index", server.url), str(source), "--path", str(folder / "qdrant")]
            ran = subprocess.run(command, check=True, capture_output=True)
            report = json.loads(ran.stdout.splitlines()[-1])
            seconds = computing(server.url) - before
    return {
        "texts": report["written"],
        "texts per second": round(texts / report["seconds"], 1),
        "worker busy, share of the wall time": round(seconds / report["seconds"], 3),
    }


def memory(lines: int) -> dict[str, Any]:
    """Of the `bge index` process, read while it runs; the lines come through a pipe."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(models_in(ROOT / MINIATURE), Path(folder) / "log") as server,
        forgetful() as url,
    ):
        server.wait_for(200)
        began = time.perf_counter()
        peaks, report = indexed(lines, [*bge("index", server.url), "--qdrant-url", url])
        seconds = time.perf_counter() - began
    early = peaks[len(peaks) // 10]
    return {
        "lines": report["written"],
        "lines per second": round(lines / seconds),
        "peak memory after a tenth and at the end, MB": [early, max(peaks)],
    }


@contextmanager
def forgetful() -> Iterator[str]:
    """The address of the stand-in, which is ended whatever happens: leaving waits for its end."""
    command = [sys.executable, "-m", "fakes.qdrant_server", "--discard"]
    tests = ROOT / "tests"
    with subprocess.Popen(command, cwd=tests, stdout=subprocess.PIPE, text=True) as qdrant:
        try:
            assert qdrant.stdout is not None
            yield qdrant.stdout.readline().strip()
        finally:
            qdrant.terminate()


def indexed(lines: int, command: list[str]) -> tuple[list[int], dict[str, Any]]:
    """The peaks of memory, one a second, and the report.

    Raises:
        CalledProcessError: it failed.
    """
    pipe = subprocess.PIPE
    generator = subprocess.Popen([sys.executable, "-c", LINES, str(lines)], stdout=pipe)
    with (
        generator,
        subprocess.Popen(command, stdin=generator.stdout, stdout=pipe) as process,
    ):
        assert generator.stdout is not None
        assert process.stdout is not None
        generator.stdout.close()  # else the generator never learns that its reader is gone
        peaks = []
        while process.poll() is None:
            peaks.append(peak(process.pid))
            time.sleep(1)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return peaks, json.loads(process.stdout.read().splitlines()[-1])


def computing(url: str) -> float:
    """Seconds the worker has spent on micro-batches."""
    text = httpx.get(f"{url}/metrics").text
    return float(re.search(r"^bge_micro_batch_seconds_total (\S+)", text, re.M)[1])  # type: ignore[index]


def peak(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s*(\d+)", status)
    return round(int(found[1]) / 1e3) if found else 0


def bge(command: str, endpoint: str) -> list[str]:
    collection = ["--collection", "c", "--endpoint", endpoint]
    return [sys.executable, "-m", "bge_client", command, *collection]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=6000)
    parser.add_argument("--lines", type=int, default=1_000_000)
    given = parser.parse_args()
    results = {"busy": busy(given.texts), "memory": memory(given.lines)}
    for name, fields in results.items():
        print(name)
        for field, value in fields.items():
            print(f"  {field:45}{value}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
