"""Process start to the first vector and score of both full-size models: `make bench-cold`.

Each round starts one fresh process of each kind, in turn, the page cache warm. Random weights, all
computed in fp32. The last line printed is one JSON object.

    packed           our engine, both models, one text embedded and one pair scored; from files in
                     fp32, and in fp16 as an image has them, cast on this CPU
    handler          one text through `worker/handler.py`: RunPod's SDK imported and started too
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

from workload import MODELS, ROOT, prepare

PACKED = """
import os
from bge_worker.engine import PackedEngine, keep_freed_memory
from bge_worker.schema import EmbedRequest, RerankRequest
from bge_worker.settings import Settings
keep_freed_memory()
engine = PackedEngine(Settings.from_env(os.environ))
for work in (EmbedRequest(["море"]), RerankRequest("море", ["суша"])):
    engine.run(work.outputs, engine.encode(work, 0, 1))
print("answered", flush=True)
"""
FLAGEMBEDDING = """
import os
from FlagEmbedding import BGEM3FlagModel, FlagReranker
embedder = BGEM3FlagModel(os.environ["BGE_EMBED_MODEL"], use_fp16=False, devices="cpu")
reranker = FlagReranker(os.environ["BGE_RERANK_MODEL"], use_fp16=False, devices="cpu")
embedder.encode(["море"])
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
        "FlagEmbedding": ([sys.executable, "-c", FLAGEMBEDDING], folder / "hub"),
    }


def seconds(command: list[str], models: Path) -> float:
    """From the start of the process to the line that tells of its answer."""
    folders = {"BGE_EMBED_MODEL": models / MODELS[0], "BGE_RERANK_MODEL": models / MODELS[1]}
    environment = os.environ | {name: str(path) for name, path in folders.items()}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    began = perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipe) as process:
        for line in process.stdout:
            if "answered" in line or "Job result" in line:
                return perf_counter() - began
    sys.exit(f"{command[1]} gave no answer; run it by hand to see why")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/bench/full"))
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    prepare("full", folder)
    kinds = commands(folder)
    for command, models in kinds.values():  # warms the page cache
        seconds(command, models)
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(arguments.rounds):
        for name, (command, models) in kinds.items():
            times[name].append(seconds(command, models))
    print("process start to first vector and score, both full-size models, page cache warm")
    for name, measured in times.items():
        share = statistics.median(
            mine / theirs for mine, theirs in zip(measured, times["FlagEmbedding"], strict=True)
        )
        print(f"{name:20}{statistics.median(measured):8.2f} s{share:8.2f} of FlagEmbedding's")
    print(json.dumps({name: [round(s, 3) for s in measured] for name, measured in times.items()}))


if __name__ == "__main__":
    main()
