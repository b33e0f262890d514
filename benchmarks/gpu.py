"""The first hour on a card: `make bench-gpu`.

Steps in the order of what matters most, each saved to `benchmarks/results/<card>.json` as it ends:

    card         its properties; the rates of a large fp16 product and of a copy
    attention    each backend against attention in fp32 on this card, as at every start
    parity       both engines in fp16 and fp32 against FlagEmbedding in fp32
    throughput   tokens a second by token budget and length, in ratio to the large product
    outputs      tokens a second with dense vectors alone, sparse and ColBERT ones too
    peers        the same texts through sentence-transformers and FlagEmbedding
    query        one query of 12 tokens: latency, and how long the device works for it
    server       one query, many at once and a bulk request through the HTTP server and the client
    profile      the device's time by kernel
    start        from process start to the first vector, by stage
    gelu         the products of a feed-forward with the exact and the fused tanh GELU
    hipblaslt    throughput with hipBLASLt and without, on ROCm

The weights are random, of the published shape. Without a GPU, `--rehearse` runs the steps on the
CPU with the small shape and saves nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from bge_builder.field_report import measures
from bge_client import Client
from bge_worker.engine import attention_choice
from bge_worker.engine.attention import SDPA
from bge_worker.engine.engine import PackedBatch, PackedEngine
from bge_worker.engine.outputs import Embedding, Outputs
from bge_worker.engine.packing import round_robin
from bge_worker.engine.tokenizer import Encoded
from bge_worker.serving.requests import EmbedRequest, RerankRequest
from bge_worker.serving.service import Service
from bge_worker.settings import AttentionName, Dtype, Settings
from gpu_parity import compare_with_reference
from peers import FlagEmbedding, SentenceTransformers, measure_ceilings
from processes import http_server
from results import save_results, with_date
from workload import (
    BENCH,
    MODELS,
    ROOT,
    SHAPES,
    Workload,
    mixed_texts,
    model_settings,
    prepare,
    texts_of_length,
    token_lengths,
)

IS_GPU = torch.cuda.is_available()
BUDGETS = (2048, 4096, 8192, 16384, 32768)
TOKENS = 1 << 17 if IS_GPU else 1 << 11  # of each throughput measurement
LENGTHS = (16, 64, 512, 2048, 8192)
PEERS = ("sentence-transformers", "FlagEmbedding", "transformers")
MIXED, CHUNKS = "mixed lengths", "512 tokens"
QUERIES = 200 if IS_GPU else 10
START = """
import logging, sys, time
began = time.perf_counter()
from bge_worker.process import prepare_process
prepare_process()
import torch
print(f"stage torch imported: {time.perf_counter() - began:.2f}", flush=True)
began = time.perf_counter()
torch.zeros(1, device="cuda" if torch.cuda.is_available() else "cpu")
print(f"stage device opened: {time.perf_counter() - began:.2f}", flush=True)
import os
from bge_worker.engine.engine import PackedEngine
from bge_worker.engine.outputs import Outputs
from bge_worker.settings import Settings
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="stages %(message)s")
engine = PackedEngine(Settings.from_env(os.environ))
began = time.perf_counter()
engine.run(Outputs.DENSE, engine.encode_texts(["море"], max_length=8192))
print(f"stage first vector: {time.perf_counter() - began:.3f}", flush=True)
"""


@dataclass
class Bench:
    """The shape measured, and its checkpoints."""

    shape: str
    rounds: int

    @property
    def models(self) -> Path:
        return BENCH / self.shape

    def engine(
        self,
        dtype: Dtype = "auto",
        attention: AttentionName = "auto",
        *,
        cuda_graphs: bool = True,
    ) -> PackedEngine:
        folder = self.models / ("float16" if IS_GPU and dtype != "float32" else "float32")
        settings = Settings(folder / MODELS[0], folder / MODELS[1])
        return PackedEngine(
            replace(settings, dtype=dtype, attention=attention, cuda_graphs=cuda_graphs)
        )


# ---------------------------------------------------------------------------------- steps


def card(bench: Bench) -> dict[str, Any]:
    ceilings = {name: round(value, 1) for name, value in measure_ceilings().items()}
    if not IS_GPU:
        return ceilings
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_mb": properties.total_memory >> 20,
        "processors": properties.multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "peers": {name: version(name) for name in PEERS},
        **ceilings,
    }


def attention(bench: Bench) -> dict[str, Any]:
    """Check each backend as at a start: its largest difference from fp32, or its fault."""
    device = torch.device("cuda" if IS_GPU else "cpu")
    shape = SHAPES[bench.shape]
    heads = (shape.heads, shape.width // shape.heads)
    cases = [(SDPA, torch.float16), (SDPA, torch.float32)]
    if attention_choice.flash_obstacle(device, torch.float16, [heads[1]]) is None:
        cases.insert(0, (attention_choice.flash_on(device), torch.float16))
    results: dict[str, Any] = {}
    for backend, dtype in cases:
        began = time.perf_counter()
        fault = attention_choice.find_fault(backend, device, dtype, [heads])
        result: dict[str, Any] = {"seconds": round(time.perf_counter() - began, 3), "fault": fault}
        if fault is None:
            difference = attention_choice.largest_difference(backend, device, dtype, *heads)
            result["largest_difference"] = float(f"{difference:.1e}")
        results[f"{backend.name}, {str(dtype).removeprefix('torch.')}"] = result
    return results


def parity(bench: Bench) -> dict[str, Any]:
    return compare_with_reference(bench.models, bench.engine)


def throughput(bench: Bench) -> dict[str, Any]:
    """Dense vectors from token ids: tokens a second, and the share of the large product's rate."""
    engine = bench.engine()
    limit = measure_ceilings()["gflops"]
    results: dict[str, Any] = {}
    for name, texts in throughput_texts().items():
        encoded = engine.encode_texts(texts, max_length=8192)
        lengths = [len(text.ids) for text in encoded]
        flops = Workload("", "", "dense", texts, lengths).flops(SHAPES[bench.shape])
        for budget in BUDGETS:
            seconds = statistics.median(
                embed_seconds(engine, encoded, budget) for _ in range(bench.rounds + 1)
            )
            results.setdefault(name, {})[str(budget)] = {
                "tokens_per_second": round(sum(lengths) / seconds),
                "share_of_product": round(flops / seconds / 1e9 / limit, 3),
                "peak_memory_mb": peak_memory_mb(),
            }
    return results


@cache
def throughput_texts() -> dict[str, list[str]]:
    """Texts of mixed lengths, and of equal ones: about `TOKENS` tokens each."""
    mixed = mixed_texts(4096 if IS_GPU else 64)
    totals = np.cumsum(token_lengths(mixed))
    texts = {MIXED: mixed[: int(np.searchsorted(totals, TOKENS)) + 1]}
    for length in LENGTHS:
        texts[f"{length} tokens"] = texts_of_length(max(1, TOKENS // length), length)
    return texts


def embed_seconds(
    engine: PackedEngine,
    waiting: Sequence[Encoded],
    budget: int,
    outputs: Outputs = Outputs.DENSE,
) -> float:
    """Return the seconds to embed texts in micro-batches of `budget` tokens.

    In the batcher's order: the next one is launched before the results of the last are read.
    """
    start = time.perf_counter()
    computed: PackedBatch | None = None
    while waiting:
        (count,) = round_robin([[len(text.ids) for text in waiting]], budget)
        batch = engine.launch(outputs, waiting[:count])
        if computed is not None:
            computed.results()
        batch.wait()
        waiting, computed = waiting[count:], batch
    if computed is not None:
        computed.results()
    return time.perf_counter() - start


def outputs(bench: Bench) -> dict[str, Any]:
    """Tokens a second of mixed lengths by the outputs computed, from token ids to arrays."""
    engine = bench.engine()
    encoded = engine.encode_texts(throughput_texts()[MIXED], max_length=8192)
    tokens = sum(len(text.ids) for text in encoded)
    budget = engine.runtime.max_batch_tokens
    results: dict[str, Any] = {}
    for kinds in (
        Outputs.DENSE,
        Outputs.DENSE | Outputs.SPARSE,
        Outputs.DENSE | Outputs.SPARSE | Outputs.COLBERT,
    ):
        seconds = [embed_seconds(engine, encoded, budget, kinds) for _ in range(bench.rounds + 1)]
        results[str(kinds)] = {"tokens_per_second": round(tokens / statistics.median(seconds))}
    return results


class Worker:
    """Our engine behind the worker's queue."""

    def __init__(self, engine: PackedEngine) -> None:
        settings = Settings(max_request_tokens=1 << 30, max_reply_bytes=1 << 40)
        self._batcher = Service(engine, settings).batcher

    def dense(self, texts: Sequence[str]) -> Any:
        finished = self._batcher.submit(EmbedRequest(texts)).result()
        return np.stack([result.dense for result in cast("list[Embedding]", finished.results)])

    def rerank(self, query: str, documents: Sequence[str]) -> Any:
        return np.array(self._batcher.submit(RerankRequest(query, documents)).result().results)


def peers(bench: Bench) -> dict[str, Any]:
    """From texts, tokenisation included, in turns. Others' seconds in ratio to ours."""
    contestants = {
        "bge-serverless": Worker(bench.engine()),
        "sentence-transformers": SentenceTransformers(bench.models),
        "FlagEmbedding": FlagEmbedding(bench.models),
    }
    texts = throughput_texts()
    documents = texts_of_length(100 if IS_GPU else 5, 256)
    tasks = {name: texts[name] for name in (MIXED, CHUNKS)} | {"rerank 100": documents}
    results: dict[str, Any] = {}
    for task, inputs in tasks.items():
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(bench.rounds + 1):  # the first is a warm-up
            for name, contestant in contestants.items():
                start = time.perf_counter()
                if task == "rerank 100":
                    contestant.rerank("как найти минимум функции", inputs)
                else:
                    contestant.dense(inputs)
                seconds[name].append(time.perf_counter() - start)
        ours = seconds["bge-serverless"][1:]
        tokens = sum(token_lengths(inputs))
        results[task] = {
            name: {
                "seconds": round(statistics.median(times[1:]), 4),
                "ours_is_faster_by": round(
                    statistics.median(a / b for a, b in zip(times[1:], ours, strict=True)), 2
                ),
                "tokens_per_second": round(tokens / statistics.median(times[1:])),
            }
            for name, times in seconds.items()
        }
    return results


def query(bench: Bench) -> dict[str, Any]:
    """One query alone, by backend: milliseconds from text to vector, and of the device's work."""
    (text,) = texts_of_length(1, 12)
    results: dict[str, Any] = {}
    cases: tuple[tuple[AttentionName, bool], ...] = (
        ("auto", True),
        ("auto", False),
        ("sdpa", False),
    )
    for backend, graphs in cases:
        engine = bench.engine(attention=backend, cuda_graphs=graphs)
        times = []
        for _ in range(QUERIES):
            start = time.perf_counter()
            engine.run(Outputs.DENSE, engine.encode_texts([text], max_length=8192))
            times.append(1e3 * (time.perf_counter() - start))
        kernels = device_times(engine, engine.encode_texts([text], 8192), 16384)
        graph = ", CUDA graph" if engine.has_graphs else ""
        name = f"{backend}: {engine.runtime.attention}{graph}"
        results[name] = {
            "median_ms": round(statistics.median(times), 3),
            "p99_ms": round(float(np.percentile(times, 99)), 3),
            "device_ms": round(kernels.total() / 1e3, 3),
            "kernels": len(kernels),
        }
    return results


def server(bench: Bench) -> dict[str, Any]:
    """The HTTP server and the Python client, on one machine."""
    folder = bench.models / ("float16" if IS_GPU else "float32")
    with (
        http_server(model_settings(folder)) as process,
        Client(process.url, "", timeout=300) as client,
    ):
        return {
            "query": measures.measure_lone_query(client),
            "queries by callers": measures.measure_concurrency(client),
            "bulk": measures.measure_throughput(client, 4096 if IS_GPU else 8),
        }


def profile(bench: Bench) -> dict[str, Any]:
    """The share of the time that the device works, and of each kernel in that."""
    engine = bench.engine()
    budget = engine.runtime.max_batch_tokens
    results: dict[str, Any] = {}
    for name, texts in throughput_texts().items():
        encoded = engine.encode_texts(texts, max_length=8192)
        embed_seconds(engine, encoded, budget)
        seconds = embed_seconds(engine, encoded, budget)
        kernels = device_times(engine, encoded, budget)
        busy = kernels.total()
        results[name] = {
            "device_busy": round(busy / 1e6 / seconds, 3),
            "kernels": {
                kernel[:90]: round(microseconds / busy, 3)
                for kernel, microseconds in kernels.most_common(14)
            },
        }
    return results


def device_times(engine: PackedEngine, encoded: Sequence[Encoded], budget: int) -> Counter[str]:
    """Return the microseconds of each kernel; of each operation without a GPU."""
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if IS_GPU else [])
    with torch_profile(activities=kinds) as record:
        embed_seconds(engine, encoded, budget)
    times: Counter[str] = Counter()
    for event in record.key_averages():
        if not IS_GPU:
            times[event.key] += event.self_cpu_time_total
        elif event.device_type == DeviceType.CUDA:  # kernels, not their launchers
            times[event.key] += event.self_device_time_total
    return times


def start(bench: Bench) -> dict[str, Any]:
    """From process start to the first vector, the page cache warm, in two runs."""
    folder = bench.models / ("float16" if IS_GPU else "float32")
    runs = []
    for _ in range(2):
        began = time.perf_counter()
        completed = subprocess.run(
            [sys.executable, "-c", START],
            env=os.environ | model_settings(folder),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if completed.returncode:
            raise RuntimeError(completed.stderr[-1000:])
        stages = [line for line in completed.stdout.splitlines() if line.startswith("stage")]
        runs.append({"seconds": round(time.perf_counter() - began, 2), "stages": stages})
    return {"runs": runs}


def gelu(bench: Bench) -> dict[str, Any]:
    """Milliseconds of the first product of a feed-forward with its GELU, at 16,384 rows."""
    device, dtype = ("cuda", torch.float16) if IS_GPU else ("cpu", torch.float32)
    shape = SHAPES[bench.shape]
    x = torch.randn(16384 if IS_GPU else 512, shape.width, device=device, dtype=dtype)
    weight = torch.randn(shape.feed_forward, shape.width, device=device, dtype=dtype) * 0.03
    bias = torch.randn(shape.feed_forward, device=device, dtype=dtype)
    exact: list[float] = []
    fused: list[float] = []
    for _ in range(20):
        synchronize()
        began = time.perf_counter()
        reference = torch.ops.aten.gelu_.default(torch.addmm(bias, x, weight.t()))
        synchronize()
        exact.append(time.perf_counter() - began)
        began = time.perf_counter()
        output = torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
        synchronize()
        fused.append(time.perf_counter() - began)
    return {
        "exact_ms": round(1e3 * statistics.median(exact), 3),
        "fused_tanh_ms": round(1e3 * statistics.median(fused), 3),
        "largest_difference": float((reference - output).abs().max()),
    }


def hipblaslt(bench: Bench) -> dict[str, Any]:
    """The throughput step in two processes, with hipBLASLt and without. ROCm only."""
    if torch.version.hip is None:
        return {"skipped": "not ROCm"}
    results: dict[str, Any] = {}
    for value in ("1", "0"):
        command = [sys.executable, __file__, "--steps", "throughput", "--json"]
        completed = subprocess.run(
            command,
            env=os.environ | {"TORCH_BLAS_PREFER_HIPBLASLT": value},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        results[f"TORCH_BLAS_PREFER_HIPBLASLT={value}"] = json.loads(completed.stdout)["throughput"]
    return results


STEPS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    step.__name__: step
    for step in (
        card, attention, parity, throughput, outputs, peers, query, server, profile, start, gelu,
        hipblaslt,
    )
}  # fmt: skip


def synchronize() -> None:
    if IS_GPU:
        torch.cuda.synchronize()


def peak_memory_mb() -> int:
    """Return the most memory allocated on the device since the last call."""
    if not IS_GPU:
        return 0
    peak = torch.cuda.max_memory_allocated() >> 20
    torch.cuda.reset_peak_memory_stats()
    return peak


def run_steps(bench: Bench, names: Sequence[str], *, save: bool) -> dict[str, Any]:
    """Run the steps in order. One that fails is reported, and the others run."""
    results: dict[str, Any] = {}
    for name in names:
        began = time.perf_counter()
        try:
            results[name] = STEPS[name](bench)
        except Exception as error:  # the card may end this process before the next step
            results[name] = {"failed": f"{type(error).__name__}: {error}"[:1000]}
        seconds = time.perf_counter() - began
        print(f"{name} ({seconds:.0f} s): {json.dumps(results[name])}", file=sys.stderr, flush=True)
        if save and "failed" not in results[name]:
            save_results("gpu", {name: with_date(results[name])})
        gc.collect()
        if IS_GPU:
            torch.cuda.empty_cache()
    return results


def goals(results: dict[str, Any]) -> list[tuple[str, float, float, bool]]:
    """Return each goal with the measured value, the goal, and whether it is reached."""
    rates, ratios = results["throughput"], results["peers"]
    best = {
        name: max(entry["share_of_product"] for entry in rates[name].values())
        for name in (CHUNKS, MIXED)
    }
    minimums = {
        "share of the large product, 512 tokens": (best[CHUNKS], 0.6),
        "share of the large product, mixed lengths": (best[MIXED], 0.5),
        **{
            f"times as fast as {peer}, mixed": (ratios[MIXED][peer]["ours_is_faster_by"], goal)
            for peer, goal in (("sentence-transformers", 1.5), ("FlagEmbedding", 3.0))
        },
        "smallest cosine of fp16": (results["parity"]["ours, float16"]["dense_cosine"], 0.999),
    }
    latency = next(iter(results["query"].values()))["median_ms"]
    return [(name, value, goal, value >= goal) for name, (value, goal) in minimums.items()] + [
        ("one query of 12 tokens, ms", latency, 3.0, latency <= 3.0)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", nargs="+", choices=[*STEPS], default=[*STEPS])
    parser.add_argument("--json", action="store_true", help="print the results and save nothing")
    parser.add_argument("--rehearse", action="store_true", help="use the CPU and the small shape")
    args = parser.parse_args()
    if not IS_GPU and not args.rehearse:
        sys.exit("PyTorch sees no GPU. Pass --rehearse to run on the CPU with the small shape")
    bench = Bench("small" if args.rehearse else "full", args.rounds)
    prepare(bench.shape, bench.models)
    results = run_steps(bench, args.steps, save=not (args.rehearse or args.json))
    if args.json:
        print(json.dumps(results))
    failed = [name for name, result in results.items() if "failed" in result]
    if not failed and len(results) == len(STEPS):
        for name, value, goal, is_reached in goals(results):
            print(f"{name:45}{value:10.3f}{goal:8.3f}  {'ok' if is_reached else 'NOT REACHED'}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
