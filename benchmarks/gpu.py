"""All GPU benchmarks in one command: `make bench-gpu`.

    tests      the tests that need a GPU: attention backends, fp16 against fp32
    parity     fp16 on the GPU against fp32 on the CPU: cosines, logits
    engine     `compare.py` on the full shape, with sentence-transformers and FlagEmbedding
    fallback   the cost of attention through sdpa, as on cards without `varlen_attn` (T4, ROCm)
    profile    the time of a query, mixed texts and chunks by operation

The last lines compare the project's goals with the results. Without a GPU, `--rehearse` runs
everything on the CPU with the small shape.
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
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from bge_worker.engine.attention import Attention, sdpa
from peers import Packed, run_task
from projection import GOALS
from results import save_results, with_date
from workload import BENCH, ROOT, Workload, mixed_texts, prepare, workloads

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PEERS = ("sentence-transformers", "FlagEmbedding")
ENGINE_TESTS = "tests/worker/engine"
FILES = (f"{ENGINE_TESTS}/test_attention.py", f"{ENGINE_TESTS}/test_model.py")
TESTS = (*FILES, "-k", "cuda or varlen")


def run_tests() -> dict[str, Any]:
    """Return pytest's last line, and whether no test failed. Without a GPU all are skipped."""
    command = [sys.executable, "-m", "pytest", "-q", *TESTS]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(completed.stdout[-2000:])
    return {"said": completed.stdout.strip().splitlines()[-1], "passed": completed.returncode == 0}


def run_compare(shape: str, rounds: int, *options: str) -> dict[str, Any]:
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
    """Compare fp16 on the device with fp32 on the CPU: smallest cosine, largest logit error."""
    cpu, texts = Packed(models, "cpu"), mixed_texts(16)
    vectors = [packed.dense(texts) for packed in (gpu, cpu)]
    scores = [packed.rerank("как найти минимум", texts) for packed in (gpu, cpu)]
    return {
        "smallest cosine": round(float((vectors[0] * vectors[1]).sum(1).min()), 6),
        "largest difference of a logit": round(float(np.abs(scores[0] - scores[1]).max()), 4),
    }


def fallback(
    models: Path, gpu: Packed, selected: Iterable[Workload], rounds: int
) -> dict[str, float]:
    """Return how many times as long each workload takes with attention through sdpa."""
    through_sdpa = Attention("sdpa", "benchmark of the fallback", sdpa)
    with patch("bge_worker.engine.engine.choose_attention", lambda *_: through_sdpa):
        sdpa_packed = Packed(models)
    results = {}
    for workload in selected:
        run_fallback, run_default = (
            partial(run_workload, packed, workload) for packed in (sdpa_packed, gpu)
        )
        ratios = [seconds(run_fallback) / seconds(run_default) for _ in range(rounds + 1)]
        results[workload.name] = round(statistics.median(ratios[1:]), 2)
    return results


def run_workload(packed: Packed, workload: Workload) -> None:
    run_task(packed, asdict(workload))


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def profile(gpu: Packed, workload: Workload) -> dict[str, float]:
    """Return the share of the time that the device is busy, and each operation's share of that."""
    run_workload(gpu, workload)
    duration = 1e6 * seconds(lambda: run_workload(gpu, workload))  # without the profiler's own time
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])
    with torch_profile(activities=kinds) as record:
        run_workload(gpu, workload)
    times: Counter[str] = Counter()
    for event in record.key_averages():
        if DEVICE == "cpu":
            times[event.key] += event.self_cpu_time_total
        elif event.device_type == DeviceType.CUDA:  # kernels, not their launchers
            times[event.key] += event.self_device_time_total
    busy = times.total()
    shares = {name: round(value / busy, 3) for name, value in times.most_common(8)}
    return {"device busy": round(busy / duration, 2), **shares}


def check_goals(
    engine: dict[str, Any], results: dict[str, Any]
) -> list[tuple[str, float, str, bool]]:
    """Return each goal with the measured value, the required one, and whether it is reached."""

    def share(workload: str) -> float:
        return float(engine[workload]["share_of"]["product"])

    def speedup(workload: str, peer: str) -> float:
        return float(engine[workload]["rows"][peer]["ours_is_faster_by"])

    query = 1e3 * engine["query"]["rows"]["bge-serverless"]["median"]
    minimums = {
        "share of the large product, chunks": (share("chunks"), GOALS["chunks"]),
        "share of the large product, mixed": (share("mixed"), GOALS["mixed"]),
        "times as fast as sentence-transformers, mixed": (speedup("mixed", PEERS[0]), 1.5),
        "times as fast as FlagEmbedding, mixed": (speedup("mixed", PEERS[1]), 3.0),
        "smallest cosine of fp16 to fp32": (results["parity"]["smallest cosine"], 0.999),
        "tests passed": (float(results["tests"]["passed"]), 1.0),
    }
    maximums = {
        "a query of 12 tokens, ms": (query, 3.0),
        "rerank 100, times its arithmetic": (1 / share("rerank 100"), 1.5),
    }
    return [
        (name, actual, f"≥ {goal}", actual >= goal) for name, (actual, goal) in minimums.items()
    ] + [(name, actual, f"≤ {goal}", actual <= goal) for name, (actual, goal) in maximums.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rehearse", action="store_true", help="use the CPU and the small shape")
    args = parser.parse_args()
    if DEVICE == "cpu" and not args.rehearse:
        sys.exit("PyTorch sees no GPU. Pass --rehearse to run on the CPU with the small shape")
    shape = "small" if args.rehearse else "full"
    models = BENCH / shape
    prepare(shape, models)
    results: dict[str, Any] = {"tests": run_tests()}
    engine = run_compare(shape, args.rounds, *([] if args.rehearse else ["--save"]))
    gpu = Packed(models)
    by_name = {workload.name: workload for workload in workloads(shape, DEVICE)}
    selected = [by_name[name] for name in ("query", "mixed", "chunks", "rerank 25")]
    results["parity"] = parity(models, gpu)
    results["through sdpa, times as long"] = fallback(models, gpu, selected, args.rounds)
    results["profile"] = {
        name: profile(gpu, by_name[name]) for name in ("query", "mixed", "chunks")
    }
    print(json.dumps(results, indent=1))
    for name, actual, goal, is_reached in check_goals(engine, results):
        print(f"{name:50}{actual:9.3f}  goal {goal:8}{'ok' if is_reached else 'NOT REACHED'}")
    if not args.rehearse:
        print(save_results("gpu", {shape: with_date(results)}))


if __name__ == "__main__":
    main()
