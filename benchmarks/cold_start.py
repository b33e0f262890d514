"""Process start to the first vector, then to the first score, both full-size models loaded.

`make bench-cold`. Each round starts one fresh process of each kind, in turn, the page cache warm.
Random weights, all computed in fp32. The last line printed is one JSON object.

    packed           our engine, both models, one text embedded and one pair scored; from files in
                     fp32, and in fp16 as an image has them, cast on this CPU
    handler          one text through `worker/handler.py`: RunPod's SDK imported and started too
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

from workload import MODELS, ROOT, prepare

PACKED = """
import gc
gc.disable()
import os
from bge_worker.process import prepare_process
prepare_process()
from bge_worker.engine import PackedEngine
from bge_worker.schema import EmbedRequest, RerankRequest
from bge_worker.settings import Settings
engine = PackedEngine(Settings.from_env(os.environ))
for work in (EmbedRequest(["море"]), RerankRequest("море", ["суша"])):
    engine.run(work.outputs, engine.encode(work, 0, 1))
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
    folders = {"BGE_EMBED_MODEL": models / MODELS[0], "BGE_RERANK_MODEL": models / MODELS[1]}
    environment = os.environ | {name: str(path) for name, path in folders.items()}
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


def report(name: str, measured: list[float], reference: list[float]) -> None:
    share = statistics.median(
        mine / theirs for mine, theirs in zip(measured, reference, strict=True)
    )
    print(f"{name:28}{statistics.median(measured):8.2f} s{share:8.2f} of FlagEmbedding's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/bench/full"))
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    prepare("full", folder)
    kinds = commands(folder)
    for command, models in kinds.values():  # warms the page cache
        seconds(command, models)
    times: dict[str, list[list[float]]] = {name: [] for name in kinds}
    for _ in range(arguments.rounds):
        for name, (command, models) in kinds.items():
            times[name].append(seconds(command, models))
    print("from process start, both full-size models, page cache warm")
    for place, answer in enumerate(("vector", "score")):
        reference = [answers[place] for answers in times["FlagEmbedding"]]
        for name, rounds in times.items():
            if len(rounds[0]) > place:
                report(f"{answer}: {name}", [answers[place] for answers in rounds], reference)
    print(json.dumps({name: [[round(s, 3) for s in r] for r in rs] for name, rs in times.items()}))


if __name__ == "__main__":
    main()
