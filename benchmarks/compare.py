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
import statistics
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from results import dated, keep, kept
from workload import NAMES, ROOT, SHAPES, Workload, prepare, workloads

OURS = "bge-serverless"
MACHINE = "the machine"  # no contestant: a process that measures what is possible
INEXACT = {"ONNX Runtime int8"}  # a row of its own: it computes something else
VENVS = {
    "FlagEmbedding": ROOT / ".venv-flagembedding",
    "Infinity": ROOT / ".venv-infinity",
    "ONNX Runtime": ROOT / ".venv-onnxruntime",
    "ONNX Runtime int8": ROOT / ".venv-onnxruntime",
    "sentence-transformers": ROOT / ".venv-sentence-transformers",
}
KINDS = {
    "dense": {OURS, "sentence-transformers", "FlagEmbedding", "Infinity", "ONNX Runtime",
              "ONNX Runtime int8"},
    "all": {OURS, "FlagEmbedding"},
    "rerank": {OURS, "sentence-transformers", "FlagEmbedding", "Infinity", "ONNX Runtime",
               "ONNX Runtime int8"},
}  # fmt: skip
# In fp32, and in fp16 on a GPU; logits are larger than the numbers of unit vectors.
TOLERANCE = {"dense": (1e-4, 2e-2), "all": (1e-4, 2e-2), "rerank": (2e-3, 1e-1)}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class Contestant:
    """The runner's end of a peer's process."""

    name: str
    models: Path
    seconds: list[float] = field(default_factory=list)
    peak_mb: int = 0  # of the GPU's memory where there is one, else resident
    difference: float = 0.0  # from our output, at most

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

    def run(self, workload: Workload, *, counts: bool = True) -> np.ndarray:
        """The first rows it gives; its time is kept if it counts."""
        answer = self.ask(asdict(workload))
        self.seconds += [answer["seconds"]] * counts
        self.peak_mb = max(self.peak_mb, answer.get("peak_gpu_mb", answer["peak_rss_mb"]))
        return np.array(answer["rows"])


def agree(workload: Workload, rows: dict[str, np.ndarray], contestants: list[Contestant]) -> None:
    """Whoever computes something else ends the run: there would be nothing to compare."""
    for one in contestants:
        found = float(np.abs(rows[one.name] - rows[OURS]).max())
        one.difference = max(one.difference, found)
        if one.name not in INEXACT and not found <= tolerance(workload.kind):
            sys.exit(f"{workload.name}: {one.name} differs by {found}: nothing to time")


def tolerance(kind: str) -> float:
    exact, half = TOLERANCE[kind]
    return half if DEVICE == "cuda" else exact


def contest(shape: str, models: Path, workload: Workload, peers: list[str], rounds: int) -> Any:
    """Each workload with processes of its own: full-size weights of six peers are 25 GB."""
    contestants = [Contestant(name, models) for name in peers if name in KINDS[workload.kind]]
    ceilings = []
    with ExitStack() as stack:
        for one in contestants:
            stack.enter_context(one)
        machine = stack.enter_context(Contestant(MACHINE, models))
        for number in range(rounds + 1):  # the first is a warm-up, and no time counts
            rows = {one.name: one.run(workload, counts=number > 0) for one in contestants}
            agree(workload, rows, contestants)
            if number:
                ceilings.append(machine.ask({"kind": "ceilings"}))
    ours = next(one for one in contestants if one.name == OURS).seconds
    return dated(
        {
            "about": workload.about,
            "tokens": sum(workload.lengths),
            "texts": len(workload.texts),
            "rows": {one.name: row(one, ours) for one in contestants},
            **shares(shape, workload, ours, ceilings),
        }
    )


def row(one: Contestant, ours: list[float]) -> dict[str, Any]:
    return {
        "seconds": [round(s, 5) for s in one.seconds],
        "median": round(statistics.median(one.seconds), 5),
        # Round by round: a slow minute slows both sides of a ratio.
        "ours_is_faster_by": round(
            statistics.median(a / b for a, b in zip(one.seconds, ours, strict=True)), 2
        ),
        "peak_mb": one.peak_mb,
        "difference": float(f"{one.difference:.1e}"),
    }


def shares(
    shape: str, workload: Workload, ours: list[float], ceilings: list[dict[str, float]]
) -> dict[str, Any]:
    """Round by round: of the large product's rate, and of reading every weight once."""
    gflop = workload.flops(SHAPES[shape]) / 1e9
    gb = workload.weights(SHAPES[shape]) * (2 if DEVICE == "cuda" else 4) / 1e9
    limits = {"product": (gflop, "gflops"), "reading": (gb, "read_gb_s")}
    return {
        "share_of": {
            name: round(
                statistics.median(
                    work / seconds / ceiling[rate]
                    for seconds, ceiling in zip(ours, ceilings, strict=True)
                ),
                3,
            )
            for name, (work, rate) in limits.items()
        },
        "ceiling": {
            name: round(statistics.median(one[name] for one in ceilings), 1) for name in ceilings[0]
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
    parser.add_argument("--peers", nargs="+", choices=[*KINDS["dense"]])
    parser.add_argument("--workload", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/bench"))
    parser.add_argument("--save", action="store_true", help="keep it in benchmarks/results/")
    given = parser.parse_args()
    if given.save:
        kept()
    if given.save and given.peers and DEVICE == "cpu":
        parser.error("--save replaces a workload's entry, all peers' rows: leave --peers out")
    peers = [OURS, *(given.peers or [name for name in sorted(KINDS["dense"]) if available(name)])]
    peers = list(dict.fromkeys(peers))
    results: dict[str, Any] = {}
    for shape in given.shape:
        models = given.folder / shape
        prepare(shape, models)
        for workload in workloads(shape, DEVICE):
            if workload.name not in given.workload:
                continue
            found = contest(shape, models, workload, peers, given.rounds)
            show(shape, workload, found)
            results.setdefault(shape, {})[workload.name] = found
            if given.save:  # as it goes: an interrupted run keeps what it has
                keep("engine", {shape: {workload.name: found}})
    print(json.dumps(results))


def available(name: str) -> bool:
    """Whether its environment is there; says so if not."""
    folder = VENVS.get(name)
    if folder is None or (folder / "bin" / "python").exists():
        return DEVICE == "cpu" or not name.startswith("ONNX")  # its export is for a CPU
    print(f"{name} is left out: `make bench-setup` installs it", file=sys.stderr)
    return False


if __name__ == "__main__":
    main()
