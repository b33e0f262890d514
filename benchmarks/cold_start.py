"""Process start to the first vector, then to the first score, both full-size models loaded.

`make bench-cold`. Each round starts one process of each kind in turn, with a warm page cache. Then
the handler starts with its weights evicted from the page cache, compared with reading the same
files. Weights are random, computed in fp32. The last line of stdout is one JSON object.

    packed           our engine, both models, one text embedded and one pair scored; from files in
                     fp32, and in fp16 as in an image, cast on this CPU
    handler          one text through `worker/handler.py`, which imports and starts RunPod's SDK;
                     prints the stages of one start
    import torch     the import only: the lower bound
    FlagEmbedding    BGEM3FlagModel and FlagReranker, one text encoded and one pair scored
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from results import read_results, save_results, with_date
from workload import ROOT, model_settings, prepare

PACKED = """
import gc
gc.disable()
import os
from bge_worker.process import prepare_process
prepare_process()
from bge_worker.engine.engine import PackedEngine
from bge_worker.engine.outputs import Outputs
from bge_worker.settings import Settings
engine = PackedEngine(Settings.from_env(os.environ))
engine.run(Outputs.DENSE, engine.encode_texts(["море"], max_length=8192))
print("answered", flush=True)
engine.run(Outputs.RELEVANCE, engine.encode_pairs(["море"], ["суша"], max_length=1024))
print("answered", flush=True)
"""
IMPORT_TORCH = "import gc; gc.disable(); import torch; print('answered', flush=True)"
FLAGEMBEDDING = """
import os
from FlagEmbedding import BGEM3FlagModel, FlagReranker
embedder = BGEM3FlagModel(os.environ["BGE_EMBED_MODEL"], use_fp16=False, devices="cpu")
reranker = FlagReranker(os.environ["BGE_RERANK_MODEL"], use_fp16=False, devices="cpu")
embedder.encode(["море"])
print("answered", flush=True)
reranker.compute_score([["море", "суша"]])
print("answered", flush=True)
"""


def commands(folder: Path) -> dict[str, tuple[list[str], Path]]:
    """Return the command and the models' folder of each kind."""
    payload = json.dumps({"input": {"texts": "море", "encoding_format": "base64"}})
    handler = [sys.executable, "worker/handler.py", "--test_input", payload]
    return {
        "packed, fp32 files": ([sys.executable, "-c", PACKED], folder / "float32"),
        "packed, fp16 files": ([sys.executable, "-c", PACKED], folder / "float16"),
        "handler, fp32 files": (handler, folder / "float32"),
        "import torch": ([sys.executable, "-c", IMPORT_TORCH], folder),
        "FlagEmbedding": ([sys.executable, "-c", FLAGEMBEDDING], folder / "hub"),
    }


def measure_answers(command: list[str], models: Path) -> list[float]:
    """Return the seconds from the start of the process to each answer."""
    environment = os.environ | model_settings(models)
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    start = perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipe) as process:
        answers = [
            perf_counter() - start
            for line in process.stdout
            if "answered" in line or "Job result" in line
        ]
    if not answers:
        sys.exit(f"{command[1]} gave no answer; run it by hand to see the error")
    return answers


def evict(folder: Path) -> None:
    """Evict the folder's files from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_reading(folder: Path) -> float:
    """Return the seconds one thread takes to read the folder."""
    start = perf_counter()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 24):
                    pass
    return perf_counter() - start


def measure_from_disk(command: list[str], models: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds to read the files, and to the handler's first answer, both from disk."""
    times: dict[str, list[float]] = {"reading the files": [], "handler": []}
    for _ in range(rounds):
        evict(models)
        times["reading the files"].append(measure_reading(models))
        evict(models)
        times["handler"].append(measure_answers(command, models)[0])
    return times


def trace_start(command: list[str], models: Path) -> str:
    """Return the lines that `BGE_TRACE_START=1` prints for one start."""
    env = os.environ | model_settings(models)
    completed = subprocess.run(
        command, cwd=ROOT, env=env | {"BGE_TRACE_START": "1"}, capture_output=True, text=True
    )
    return "\n".join(line for line in completed.stderr.splitlines() if line.startswith("start "))


def summarize(measured: list[float], reference: list[float]) -> dict[str, Any]:
    """Return the seconds, their median, and the median ratio to `reference`, round by round."""
    shares = [value / baseline for value, baseline in zip(measured, reference, strict=True)]
    return with_date(
        {
            "seconds": [round(value, 2) for value in measured],
            "median": round(statistics.median(measured), 2),
            "share": round(statistics.median(shares), 2),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/bench/full"))
    parser.add_argument("--save", action="store_true", help="save to benchmarks/results/")
    args = parser.parse_args()
    if args.save:
        read_results()
    folder = args.folder.resolve()
    prepare("full", folder)
    kinds = commands(folder)
    for command, models in kinds.values():  # warms the page cache
        measure_answers(command, models)
    times: dict[str, list[list[float]]] = {name: [] for name in kinds}
    for _ in range(args.rounds):
        for name, (command, models) in kinds.items():
            times[name].append(measure_answers(command, models))
    results: dict[str, Any] = {"page cache warm": {}, "from disk": {}}
    for index, answer in enumerate(("vector", "score")):
        reference = [answers[index] for answers in times["FlagEmbedding"]]
        for name, rounds in times.items():
            if len(rounds[0]) > index:
                entry = summarize([answers[index] for answers in rounds], reference)
                results["page cache warm"][f"{answer}: {name}"] = entry
    handler, models = kinds["handler, fp32 files"]
    print(trace_start(handler, models))
    disk = measure_from_disk(handler, models, args.rounds)
    for name, measured in disk.items():
        results["from disk"][name] = summarize(measured, disk["reading the files"])
    for section, baseline in (("page cache warm", "FlagEmbedding"), ("from disk", "reading")):
        print(f"from process start, both full-size models, {section}")
        for name, entry in results[section].items():
            print(f"{name:30}{entry['median']:8.2f} s{entry['share']:8.2f} of {baseline}'s")
    if args.save:
        save_results("cold", results)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
