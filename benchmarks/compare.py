"""Compare the worker's engine with its peers, workload by workload: `make bench`.

Each contestant has a process and a virtual environment of its own (`make bench-setup`). They take
turns, one round each, on the same random weights and texts, so that noise affects all of them.
Outputs in fp32 must agree before times count; int8 is compared with our int8. Every round also
measures the machine's ceiling, a large matrix product. Results go to `benchmarks/results/`; the
last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contestants import CONTESTANTS, OURS, OURS_INT8, is_int8
from results import read_results, save_results, with_date
from workload import NAMES, ROOT, SHAPES, Workload, prepare, workloads

MACHINE = "the machine"  # not a contestant: measures the ceilings
# In fp32, and in fp16 on a GPU. Logits are larger than the components of unit vectors.
TOLERANCE = {"dense": (1e-4, 2e-2), "all": (1e-4, 2e-2), "rerank": (2e-3, 1e-1)}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class Process:
    """A contestant's process and its measurements."""

    name: str
    models: Path
    seconds: list[float] = field(default_factory=list)
    peak_mb: int = 0  # of the GPU's memory if there is a GPU, else resident
    difference: float = 0.0  # maximum, from our output in fp32

    def __enter__(self) -> Process:
        contestant = CONTESTANTS.get(self.name)
        is_peer = contestant and contestant.environment
        python = str(contestant.venv / "bin" / "python") if is_peer else sys.executable
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

    def send(self, task: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} died; run benchmarks/peers.py by hand to see the error")
        return dict(json.loads(line))

    def run(self, workload: Workload, *, counts: bool = True) -> np.ndarray:
        """Return the output's first rows; record the time if it counts."""
        answer = self.send(asdict(workload))
        self.seconds += [answer["seconds"]] * counts
        self.peak_mb = max(self.peak_mb, answer.get("peak_gpu_mb", answer["peak_rss_mb"]))
        return np.array(answer["rows"])


def check_agreement(
    workload: Workload, rows: dict[str, np.ndarray], contestants: list[Process]
) -> None:
    """Exit if an output is not finite, or in fp32 differs by more than the tolerance."""
    for contestant in contestants:
        difference = float(np.abs(rows[contestant.name] - rows[OURS]).max())
        contestant.difference = max(contestant.difference, difference)
        limit = np.finfo(float).max if is_int8(contestant.name) else tolerance(workload.kind)
        if not difference <= limit:  # NaN included
            sys.exit(f"{workload.name}: {contestant.name} differs by {difference}: not comparable")


def tolerance(kind: str) -> float:
    exact, half = TOLERANCE[kind]
    return half if DEVICE == "cuda" else exact


def run_workload(
    shape: str, models: Path, workload: Workload, peers: list[str], rounds: int
) -> Any:
    """Start new processes for each workload, since idle peers keep their memory."""
    kind = workload.kind
    contestants = [Process(name, models) for name in peers if kind in CONTESTANTS[name].kinds]
    ceilings = []
    with ExitStack() as stack:
        for contestant in contestants:
            stack.enter_context(contestant)
        machine = stack.enter_context(Process(MACHINE, models))
        for number in range(rounds + 1):  # the first is a warm-up
            rows = {c.name: c.run(workload, counts=number > 0) for c in contestants}
            check_agreement(workload, rows, contestants)
            if number:
                ceilings.append(machine.send({"kind": "ceilings"}))
    seconds = {contestant.name: contestant.seconds for contestant in contestants}
    return with_date(
        {
            "about": workload.about,
            "tokens": sum(workload.lengths),
            "texts": len(workload.texts),
            "rows": {
                contestant.name: row(contestant, seconds[own_name(contestant.name)])
                for contestant in contestants
            },
            **machine_shares(shape, workload, seconds[OURS], ceilings),
        }
    )


def own_name(name: str) -> str:
    """Return our contestant of the same precision."""
    return OURS_INT8 if is_int8(name) else OURS


def row(contestant: Process, own_seconds: list[float]) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(contestant.seconds, own_seconds, strict=True)]
    return {
        "seconds": [round(s, 5) for s in contestant.seconds],
        "median": round(statistics.median(contestant.seconds), 5),
        # Round by round, since a slow minute slows both sides of a ratio.
        "ours_is_faster_by": round(statistics.median(ratios), 2),
        "peak_mb": contestant.peak_mb,
        "difference": float(f"{contestant.difference:.1e}"),
    }


def machine_shares(
    shape: str, workload: Workload, own_seconds: list[float], ceilings: list[dict[str, float]]
) -> dict[str, Any]:
    """Return our share of the large product's rate, and of that of reading every weight once."""
    gflop = workload.flops(SHAPES[shape]) / 1e9
    gb = workload.weights(SHAPES[shape]) * (2 if DEVICE == "cuda" else 4) / 1e9
    amounts = {"product": (gflop, "gflops"), "reading": (gb, "read_gb_s")}
    return {
        "share_of": {
            name: round(
                statistics.median(
                    work / seconds / ceiling[rate]
                    for seconds, ceiling in zip(own_seconds, ceilings, strict=True)
                ),
                3,
            )
            for name, (work, rate) in amounts.items()
        },
        "ceiling": {
            name: round(statistics.median(ceiling[name] for ceiling in ceilings), 1)
            for name in ceilings[0]
        },
    }


def show(shape: str, workload: Workload, result: dict[str, Any]) -> None:
    print(f"\n{shape}, {workload.name}: {workload.about}, {result['tokens']} tokens")
    for name, row in result["rows"].items():
        spread = f"{min(row['seconds']):.4f}–{max(row['seconds']):.4f}"
        print(
            f"  {name:24}{row['median']:10.4f} s {spread:>19}  "
            f"ours × {row['ours_is_faster_by']:6.2f}"
            f"{row['peak_mb']:7} MB  differs by {row['difference']:.1e}"
        )
    print(
        f"  ours: {result['share_of']['product']:.0%} of the large product's rate, "
        f"{result['share_of']['reading']:.0%} of that of reading every weight once",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=[*SHAPES], default=[*SHAPES])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="+", choices=[*CONTESTANTS])
    parser.add_argument("--workload", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/bench"))
    parser.add_argument("--save", action="store_true", help="save to benchmarks/results/")
    args = parser.parse_args()
    if args.save:
        read_results()
    if args.save and args.peers and DEVICE == "cpu":
        parser.error("--save replaces a workload's entry for all peers: omit --peers")
    chosen = {*args.peers, OURS, OURS_INT8} if args.peers else {*CONTESTANTS}
    peers = [name for name in CONTESTANTS if name in chosen and is_available(name)]
    results: dict[str, Any] = {}
    for shape in args.shape:
        models = args.folder / shape
        prepare(shape, models)
        for workload in workloads(shape, DEVICE):
            if workload.name not in args.workload:
                continue
            result = run_workload(shape, models, workload, peers, args.rounds)
            show(shape, workload, result)
            results.setdefault(shape, {})[workload.name] = result
            if args.save:  # at once: an interrupted run keeps its results
                save_results("engine", {shape: {workload.name: result}})
    print(json.dumps(results))


def is_available(name: str) -> bool:
    """Whether it runs on this device and its environment exists; print a hint if not."""
    contestant = CONTESTANTS[name]
    if DEVICE not in contestant.devices:
        return False
    if not contestant.environment or (contestant.venv / "bin" / "python").exists():
        return True
    print(f"{name} is omitted: `make bench-setup` installs it", file=sys.stderr)
    return False


if __name__ == "__main__":
    main()
