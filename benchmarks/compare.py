"""The worker's engine beside its peers, workload by workload: `make bench`.

Each contestant lives in a process and a virtual environment of its own (`make bench-setup`) and
they take turns: one round each, again and again, in one run on the same random weights and texts.
What varies with the machine's mood varies for all. Outputs must agree before anything is timed. The
machine's own ceiling, a large matrix product, is measured in every round. Results go to
`benchmarks/results/`; the last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from workload import ROOT, SHAPES, Workload, prepare, workloads

OURS = "bge-serverless"
INEXACT = {"ONNX Runtime int8"}  # a row of its own: it computes something else
VENVS = {
    "Infinity": ROOT / ".venv-infinity",
    "ONNX Runtime": ROOT / ".venv-onnx",
    "ONNX Runtime int8": ROOT / ".venv-onnx",
}
KINDS = {
    "dense": {OURS, "sentence-transformers", "FlagEmbedding", "Infinity", "ONNX Runtime",
              "ONNX Runtime int8"},
    "all": {OURS, "FlagEmbedding"},
    "rerank": {OURS, "sentence-transformers", "FlagEmbedding", "Infinity", "ONNX Runtime",
               "ONNX Runtime int8"},
}  # fmt: skip
TOLERANCE = {"dense": 1e-4, "all": 1e-4, "rerank": 2e-3}  # logits are larger


@dataclass
class Contestant:
    """The runner's end of a peer's process."""

    name: str
    models: Path
    seconds: dict[str, list[float]] = field(default_factory=dict)  # by workload
    peak_rss_mb: int = 0

    def __enter__(self) -> Contestant:
        folder = VENVS.get(self.name)
        python = str(folder / "bin" / "python") if folder else sys.executable
        self._process = subprocess.Popen(
            [python, str(ROOT / "benchmarks" / "peers.py"), self.name, str(self.models)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} died; run benchmarks/peers.py by hand to see why")
        return dict(json.loads(line))

    def run(self, workload: Workload) -> None:
        answer = self.ask(asdict(workload))
        self.seconds.setdefault(workload.name, []).append(answer["seconds"])
        self.peak_rss_mb = max(self.peak_rss_mb, answer["peak_rss_mb"])

    def rows(self, workload: Workload) -> np.ndarray:
        """Of the first four texts: what it computes, and its warm-up."""
        few = asdict(workload) | {"texts": workload.texts[:4], "repeat": 1}
        return np.array(self.ask(few)["rows"])


def check(contestants: list[Contestant], workload: Workload) -> dict[str, float]:
    """The largest difference of each peer's output from ours."""
    ours = next(one for one in contestants if one.name == OURS).rows(workload)
    found = {
        one.name: float(np.abs(one.rows(workload) - ours).max())
        for one in contestants
        if one.name != OURS
    }
    for name, difference in found.items():
        if name not in INEXACT and not difference <= TOLERANCE[workload.kind]:
            sys.exit(f"{workload.name}: {name} differs by {difference}: nothing to time")
    return found


def compare(shape: str, models: Path, rounds: int, peers: list[str], only: list[str]) -> Any:
    prepare(shape, models)
    chosen = [one for one in workloads(shape) if not only or one.name in only]
    table: dict[str, Any] = {}
    for workload in chosen:
        # Each workload with processes of its own: full-size weights of six peers are 25 GB.
        taking_part = [Contestant(name, models) for name in peers if name in KINDS[workload.kind]]
        table[workload.name] = contest(shape, workload, taking_part, rounds)
        show(shape, workload, table[workload.name])
    return table


def contest(
    shape: str, workload: Workload, contestants: list[Contestant], rounds: int
) -> dict[str, Any]:
    with ExitStack() as stack:
        for one in contestants:
            stack.enter_context(one)
        differences = check(contestants, workload)
        ceilings = []
        for _ in range(rounds):
            for one in contestants:
                one.run(workload)
            ceilings.append(contestants[0].ask({"kind": "ceilings"}))
    ours = next(one for one in contestants if one.name == OURS).seconds[workload.name]
    gflops = workload.flops(SHAPES[shape]) / 1e9
    shares = [
        gflops / seconds / ceiling["gflops"]
        for seconds, ceiling in zip(ours, ceilings, strict=True)
    ]
    rows = {}
    for one in contestants:
        seconds = one.seconds[workload.name]
        rows[one.name] = {
            "seconds": [round(s, 4) for s in seconds],
            "median": round(statistics.median(seconds), 4),
            # Round by round: a slow minute slows both sides of a ratio.
            "ours_is_faster_by": round(
                statistics.median(a / b for a, b in zip(seconds, ours, strict=True)), 2
            ),
            "peak_rss_mb": one.peak_rss_mb,
            "difference": differences.get(one.name, 0.0),
        }
    return {
        "about": workload.about,
        "tokens": sum(workload.lengths),
        "texts": len(workload.texts),
        "rows": rows,
        "share_of_ceiling": round(statistics.median(shares), 3),
        "ceiling": {
            name: round(statistics.median(c[name] for c in ceilings), 1) for name in ceilings[0]
        },
    }


def show(shape: str, workload: Workload, result: dict[str, Any]) -> None:
    print(f"\n{shape}, {workload.name}: {workload.about}, {result['tokens']} tokens")
    for name, row in result["rows"].items():
        spread = f"{min(row['seconds']):.3f}–{max(row['seconds']):.3f}"
        print(
            f"  {name:24}{row['median']:9.3f} s {spread:>17}  "
            f"ours × {row['ours_is_faster_by']:6.2f}"
            f"{row['peak_rss_mb']:7} MB  differs by {row['difference']:.1e}"
        )
    ceiling = result["ceiling"]["gflops"]
    print(
        f"  ours: {result['share_of_ceiling']:.0%} of the matrix product's {ceiling:.0f} GFLOP/s",
        flush=True,
    )


def machine() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {"gpu": gpu, "cpu": model, "threads": torch.get_num_threads()}


def versions(peers: list[str]) -> dict[str, str]:
    names = ("torch", "transformers", "sentence-transformers", "FlagEmbedding", "tokenizers")
    found = {name: version(name) for name in names}
    packages = {"Infinity": "infinity-emb", "ONNX Runtime": "onnxruntime"}
    for peer, package in packages.items():
        if peer in peers:
            code = f"from importlib.metadata import version; print(version('{package}'))"
            python = str(VENVS[peer] / "bin" / "python")
            ran = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
            found[package] = ran.stdout.strip()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=[*SHAPES], default=[*SHAPES])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="+", choices=[*KINDS["dense"]])
    parser.add_argument("--workload", nargs="+", default=[])
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/bench"))
    parser.add_argument("--save", action="store_true", help="keep it in benchmarks/results/")
    given = parser.parse_args()
    peers = given.peers or [name for name in sorted(KINDS["dense"]) if available(name)]
    peers = [OURS, *(name for name in peers if name != OURS)]
    results = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(peers),
        "rounds": given.rounds,
        "shapes": {
            shape: compare(shape, given.folder / shape, given.rounds, peers, given.workload)
            for shape in given.shape
        },
    }
    if given.save:
        place = results["machine"]["gpu"] or "cpu"
        path = ROOT / "benchmarks" / "results" / f"{place.replace(' ', '-').lower()}.json"
        path.parent.mkdir(exist_ok=True)
        if path.exists():  # what was not measured this time stays
            for shape, before in json.loads(path.read_text())["shapes"].items():
                results["shapes"][shape] = before | results["shapes"].get(shape, {})
        path.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results))


def available(name: str) -> bool:
    """Whether its environment is there; says so if not."""
    folder = VENVS.get(name)
    if folder is None or (folder / "bin" / "python").exists():
        return True
    print(f"{name} is left out: `make bench-setup` installs it", file=sys.stderr)
    return False


if __name__ == "__main__":
    main()
