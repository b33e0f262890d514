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

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from results import options, report, with_date
from timing import in_turn, seconds
from workload import BENCH, ROOT, model_settings, prepare

HANDLER, FLAG = "handler, fp32 files", "FlagEmbedding"
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
    handler = ["worker/handler.py", "--test_input", payload]
    return {
        "packed, fp32 files": (["-c", PACKED], folder / "float32"),
        "packed, fp16 files": (["-c", PACKED], folder / "float16"),
        HANDLER: (handler, folder / "float32"),
        "import torch": (["-c", IMPORT_TORCH], folder),
        FLAG: (["-c", FLAGEMBEDDING], folder / "hub"),
    }


def measure_answers(command: list[str], models: Path) -> list[float]:
    """Return the seconds from the start of the process to each answer."""
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    env = os.environ | model_settings(models)
    start = perf_counter()
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, **pipe) as process:
        answers = [
            perf_counter() - start
            for line in process.stdout
            if "answered" in line or "Job result" in line
        ]
    if not answers:
        sys.exit(f"{command[0]} gave no answer; run it by hand to see the error")
    return answers


def trace_start(command: list[str], models: Path) -> str:
    """Return the lines that `BGE_TRACE_START=1` prints for one start."""
    env = os.environ | model_settings(models) | {"BGE_TRACE_START": "1"}
    completed = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True
    )
    return "\n".join(line for line in completed.stderr.splitlines() if line.startswith("start "))


def measure_warm(folder: Path, rounds: int) -> dict[str, Any]:
    """Start each kind in turn. The first round, which fills the page cache, does not count."""
    starts = {name: partial(measure_answers, *start) for name, start in commands(folder).items()}
    measured = {name: answers[1:] for name, answers in in_turn(rounds + 1, starts).items()}
    entries = {}
    for index, answer in enumerate(("vector", "score")):
        reference = [answers[index] for answers in measured[FLAG]]
        for name, answers in measured.items():
            if len(answers[0]) > index:
                times = [seconds[index] for seconds in answers]
                entries[f"{answer}: {name}"] = summarize(times, reference)
    return entries


def measure_from_disk(command: list[str], models: Path, rounds: int) -> dict[str, Any]:
    """Compare the first answer with reading the files, both from disk."""
    times: dict[str, list[float]] = {"reading the files": [], "handler": []}
    for _ in range(rounds):
        evict(models)
        times["reading the files"].append(seconds(partial(read_files, models)))
        evict(models)
        times["handler"].append(measure_answers(command, models)[0])
    return {name: summarize(values, times["reading the files"]) for name, values in times.items()}


def evict(folder: Path) -> None:
    """Evict the folder's files from the page cache."""
    os.sync()
    for path in files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_files(folder: Path) -> None:
    for path in files(folder):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


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


def measure(folder: Path, rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    prepare("full", folder)
    yield "cold", {"page cache warm": measure_warm(folder, rounds)}
    handler, models = commands(folder)[HANDLER]
    print(trace_start(handler, models))
    yield "cold", {"from disk": measure_from_disk(handler, models, rounds)}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=BENCH / "full")
    args = parser.parse_args()
    report(measure(args.folder.resolve(), args.rounds), save=args.save)


if __name__ == "__main__":
    main()
