"""All that is to be known of a GPU, in one command: `make bench-gpu`.

    tests      those that need a GPU: attention's backends, fp16 beside fp32
    parity     the engine on the GPU in fp16 beside itself on the CPU in fp32: cosines, scores
    engine     `compare.py` on the full shape, beside sentence-transformers and FlagEmbedding
    fallback   what cards without `varlen_attn` (T4, ROCm) lose: the same workloads through sdpa
    profile    where the time of a lone query and of chunks goes, by operation

The goals of this project and what was reached stand last, one line each. Without a GPU
`--rehearse` runs all of it on the CPU and the small shape, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as recording

from bge_worker.engine.attention import Attention, sdpa
from peers import Packed, work
from projection import GOALS
from results import dated, keep
from workload import BENCH, ROOT, Workload, mixed_texts, prepare, workloads

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PEERS = ("sentence-transformers", "FlagEmbedding")
TESTS = (
    "tests/worker/engine/test_attention.py",
    "tests/worker/engine/test_parity.py",
    "-k",
    "cuda",
)


def tests() -> dict[str, Any]:
    """The last line of what pytest says, and whether all passed. Without a GPU all skip."""
    command = [sys.executable, "-m", "pytest", "-q", *TESTS]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(ran.stdout[-2000:])
    return {"said": ran.stdout.strip().splitlines()[-1], "passed": ran.returncode == 0}


def compared(shape: str, rounds: int, *options: str) -> dict[str, Any]:
    command = [sys.executable, "benchmarks/compare.py", "--shape", shape, *options]
    command += ["--rounds", str(rounds), "--peers", *PEERS]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line if not line.startswith("{") else "", end="", flush=True)
    if process.returncode:
        sys.exit("compare.py failed")
    return dict(json.loads(line)[shape])


def parity(models: Path, gpu: Packed) -> dict[str, float]:
    """fp16 on the device beside fp32 on the CPU: the smallest cosine, the largest logit error."""
    cpu, texts = Packed(models, "cpu"), mixed_texts(16)
    vectors = [one.dense(texts) for one in (gpu, cpu)]
    scores = [one.rerank("как найти минимум", texts) for one in (gpu, cpu)]
    return {
        "smallest cosine": round(float((vectors[0] * vectors[1]).sum(1).min()), 6),
        "largest difference of a logit": round(float(np.abs(scores[0] - scores[1]).max()), 4),
    }


def fallback(
    models: Path, gpu: Packed, chosen: Iterable[Workload], rounds: int
) -> dict[str, float]:
    """By workload, how many times as long attention through sdpa makes it take."""
    through_sdpa = Attention("sdpa", "asked for", sdpa)
    with patch("bge_worker.engine.engine.choose_attention", lambda *_: through_sdpa):
        other = Packed(models)
    found = {}
    for workload in chosen:
        ratios = [
            seconds(lambda: ask(other, workload)) / seconds(lambda: ask(gpu, workload))  # noqa: B023
            for _ in range(rounds + 1)
        ]
        found[workload.name] = round(statistics.median(ratios[1:]), 2)
    return found


def ask(contestant: Packed, workload: Workload) -> None:
    work(contestant, asdict(workload))


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def profile(gpu: Packed, workload: Workload) -> dict[str, float]:
    """Share of the device's time by operation, and its share of the whole: the rest it idles."""
    ask(gpu, workload)
    whole = 1e6 * seconds(lambda: ask(gpu, workload))  # the profiler's own time is not in it
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])
    with recording(activities=kinds) as record:
        ask(gpu, workload)
    taken: Counter[str] = Counter()
    for event in record.key_averages():
        if DEVICE == "cpu":
            taken[event.key] += event.self_cpu_time_total
        elif event.device_type == DeviceType.CUDA:  # kernels; what launched them names them again
            taken[event.key] += event.self_device_time_total
    busy = taken.total()
    shares = {name: round(one / busy, 3) for name, one in taken.most_common(8)}
    return {"device busy": round(busy / whole, 2), **shares}


def verdicts(engine: dict[str, Any], found: dict[str, Any]) -> list[tuple[str, float, str, bool]]:
    """Each goal: what it is about, what was reached, what was asked, whether it holds."""

    def share(workload: str) -> float:
        return float(engine[workload]["share_of"]["product"])

    def faster(workload: str, peer: str) -> float:
        return float(engine[workload]["rows"][peer]["ours_is_faster_by"])

    query = 1e3 * engine["query"]["rows"]["bge-serverless"]["median"]
    least = {
        "share of the large product, chunks": (share("chunks"), GOALS["chunks"]),
        "share of the large product, mixed": (share("mixed"), GOALS["mixed"]),
        "times as fast as sentence-transformers, mixed": (faster("mixed", PEERS[0]), 1.5),
        "times as fast as FlagEmbedding, mixed": (faster("mixed", PEERS[1]), 3.0),
        "smallest cosine of fp16 to fp32": (found["parity"]["smallest cosine"], 0.999),
        "tests passed": (float(found["tests"]["passed"]), 1.0),
    }
    most = {
        "a query of 12 tokens, ms": (query, 3.0),
        "rerank 100, times its arithmetic": (1 / share("rerank 100"), 1.5),
    }
    return [(name, got, f"≥ {asked}", got >= asked) for name, (got, asked) in least.items()] + [
        (name, got, f"≤ {asked}", got <= asked) for name, (got, asked) in most.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, the small shape")
    given = parser.parse_args()
    if DEVICE == "cpu" and not given.rehearse:
        sys.exit("PyTorch sees no GPU here. `--rehearse` runs it all on the CPU, the small shape")
    shape = "small" if given.rehearse else "full"
    models = BENCH / shape
    prepare(shape, models)
    found: dict[str, Any] = {"tests": tests()}
    engine = compared(shape, given.rounds, *([] if given.rehearse else ["--save"]))
    gpu = Packed(models)
    by_name = {one.name: one for one in workloads(shape, DEVICE)}
    few = [by_name[name] for name in ("query", "mixed", "chunks", "rerank 25")]
    found["parity"] = parity(models, gpu)
    found["through sdpa, times as long"] = fallback(models, gpu, few, given.rounds)
    found["profile"] = {name: profile(gpu, by_name[name]) for name in ("query", "mixed", "chunks")}
    print(json.dumps(found, indent=1))
    for name, got, asked, holds in verdicts(engine, found):
        print(f"{name:50}{got:9.3f}  asked {asked:8}{'ok' if holds else 'NOT REACHED'}")
    if not given.rehearse:
        print(keep("gpu", {shape: dated(found)}))


if __name__ == "__main__":
    main()
