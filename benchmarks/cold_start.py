"""Process start to the first vector, then to the first score, both full-size models loaded.

`make bench-cold`. Each round starts one fresh process of each kind, in turn, with the page cache
warm; then the handler with its weights out of the page cache, beside reading the same files.
Random weights, all computed in fp32. The last line printed is one JSON object.

    packed           our engine, both models, one text embedded and one pair scored; from files in
                     fp32, and in fp16 as an image has them, cast on this CPU
    handler          one text through `worker/handler.py`: RunPod's SDK imported and started too;
                     the stages of its last start are printed
    import torch     that alone, no answer: the least any of these takes
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

from results import dated, keep, kept
from workload import ROOT, models_in, prepare

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
engine.run(Outputs.RELEVANCE, engine.encode_pairs("море", ["суша"], max_length=1024))
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
    """Of each kind, the command and the folder of its models."""
    payload = json.dumps({"input": {"texts": "море", "encoding_format": "base64"}})
    handler = [sys.executable, "worker/handler.py", "--test_input", payload]
    return {
        "packed, fp32 files": ([sys.executable, "-c", PACKED], folder / "float32"),
        "packed, fp16 files": ([sys.executable, "-c", PACKED], folder / "float16"),
        "handler, fp32 files": (handler, folder / "float32"),
        "import torch": ([sys.executable, "-c", IMPORT_TORCH], folder),
        "FlagEmbedding": ([sys.executable, "-c", FLAGEMBEDDING], folder / "hub"),
    }


def seconds(command: list[str], models: Path) -> list[float]:
    """From the start of the process to each line that tells of an answer."""
    environment = os.environ | models_in(models)
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    began = perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipe) as process:
        answers = [
            perf_counter() - began
            for line in process.stdout
            if "answered" in line or "Job result" in line
        ]
    if not answers:
        sys.exit(f"{command[1]} gave no answer; run it by hand to see why")
    return answers


def evict(folder: Path) -> None:
    """Have the kernel forget what it keeps of the folder's files."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading(folder: Path) -> float:
    """Seconds to read all of it, as fast as one thread can."""
    began = perf_counter()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 24):
                    pass
    return perf_counter() - began


def from_disk(command: list[str], models: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of reading the files and of the handler's first answer, both from the disk."""
    taken: dict[str, list[float]] = {"reading the files": [], "handler": []}
    for _ in range(rounds):
        evict(models)
        taken["reading the files"].append(reading(models))
        evict(models)
        taken["handler"].append(seconds(command, models)[0])
    return taken


def stages(command: list[str], models: Path) -> str:
    """What `BGE_TRACE_START=1` says of one start."""
    env = os.environ | models_in(models)
    ran = subprocess.run(
        command, cwd=ROOT, env=env | {"BGE_TRACE_START": "1"}, capture_output=True, text=True
    )
    return "\n".join(line for line in ran.stderr.splitlines() if line.startswith("start "))


def against(measured: list[float], reference: list[float]) -> dict[str, Any]:
    """Seconds, their median, and round by round the share of what stands beside."""
    shares = [mine / theirs for mine, theirs in zip(measured, reference, strict=True)]
    return dated(
        {
            "seconds": [round(one, 2) for one in measured],
            "median": round(statistics.median(measured), 2),
            "share": round(statistics.median(shares), 2),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/bench/full"))
    parser.add_argument("--save", action="store_true", help="keep it in benchmarks/results/")
    arguments = parser.parse_args()
    if arguments.save:
        kept()
    folder = arguments.folder.resolve()
    prepare("full", folder)
    kinds = commands(folder)
    for command, models in kinds.values():  # warms the page cache
        seconds(command, models)
    times: dict[str, list[list[float]]] = {name: [] for name in kinds}
    for _ in range(arguments.rounds):
        for name, (command, models) in kinds.items():
            times[name].append(seconds(command, models))
    results: dict[str, Any] = {"page cache warm": {}, "from disk": {}}
    for place, answer in enumerate(("vector", "score")):
        reference = [answers[place] for answers in times["FlagEmbedding"]]
        for name, rounds in times.items():
            if len(rounds[0]) > place:
                found = against([answers[place] for answers in rounds], reference)
                results["page cache warm"][f"{answer}: {name}"] = found
    handler, models = kinds["handler, fp32 files"]
    print(stages(handler, models))
    disk = from_disk(handler, models, arguments.rounds)
    for name, measured in disk.items():
        results["from disk"][name] = against(measured, disk["reading the files"])
    for place, beside in (("page cache warm", "FlagEmbedding's"), ("from disk", "the reading's")):
        print(f"from process start, both full-size models, {place}")
        for name, found in results[place].items():
            print(f"{name:30}{found['median']:8.2f} s{found['share']:8.2f} of {beside}")
    if arguments.save:
        keep("cold", results)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
