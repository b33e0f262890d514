"""Process start to the first vector and score of both full-size models: `make bench-cold`.

Each round starts one fresh process of each kind, in turn, the page cache warm. Random weights in
fp32. The last line printed is one JSON object.

    packed           our engine, both models, one text embedded and one pair scored
    handler          the same through `worker/handler.py`: RunPod's SDK imported and started too
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
from pathlib import Path
import sys
from bge_worker.engine import PackedEngine
from bge_worker.schema import EmbedRequest, RerankRequest
from bge_worker.settings import Settings
engine = PackedEngine(Settings(Path(sys.argv[1]), Path(sys.argv[2])))
for work in (EmbedRequest(["море"]), RerankRequest("море", ["суша"])):
    engine.run(work.outputs, engine.encode(work, 0, 1))
"""
FLAGEMBEDDING = """
import sys
from FlagEmbedding import BGEM3FlagModel, FlagReranker
embedder = BGEM3FlagModel(sys.argv[1], use_fp16=False, devices="cpu")
reranker = FlagReranker(sys.argv[2], use_fp16=False, devices="cpu")
embedder.encode(["море"])
reranker.compute_score([["море", "суша"]])
"""


def commands(folder: Path) -> dict[str, list[str]]:
    packed = [str(folder / "packed" / model) for model in MODELS]
    hub = [str(folder / "hub" / model) for model in MODELS]
    payload = json.dumps({"input": {"texts": "море", "encoding_format": "base64"}})
    return {
        "packed": [sys.executable, "-c", PACKED, *packed],
        "handler": [sys.executable, "worker/handler.py", "--test_input", payload],
        "FlagEmbedding": [sys.executable, "-c", FLAGEMBEDDING, *hub],
    }


def seconds(command: list[str], folder: Path) -> float:
    packed = folder / "packed"
    models = {"BGE_EMBED_MODEL": packed / MODELS[0], "BGE_RERANK_MODEL": packed / MODELS[1]}
    environment = os.environ | {name: str(path) for name, path in models.items()}
    began = perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/bench/full"))
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    prepare("full", folder)
    kinds = commands(folder)
    for command in kinds.values():  # warms the page cache
        seconds(command, folder)
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(arguments.rounds):
        for name, command in kinds.items():
            times[name].append(seconds(command, folder))
    print("process start to first vector and score, both full-size models, page cache warm")
    for name, measured in times.items():
        share = statistics.median(
            mine / theirs for mine, theirs in zip(measured, times["FlagEmbedding"], strict=True)
        )
        print(f"{name:15}{statistics.median(measured):8.2f} s{share:8.2f} of FlagEmbedding's")
    print(json.dumps({name: [round(s, 3) for s in measured] for name, measured in times.items()}))


if __name__ == "__main__":
    main()
