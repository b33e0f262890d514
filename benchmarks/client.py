"""Costs of the client: `make bench-client`.

    imports    import time and number of required packages, compared with `runpod`
    decode     decoding 2,000 dense vectors of 1,024 and 100 ColBERT arrays of 512 tokens, from
               base64 and from JSON floats
    bulk       20,000 texts through `embed_iter` and the HTTP server: order, throughput, peak memory
    workers    throughput of one and of three queue workers behind one endpoint

Uses the miniature, or the models in `BGE_EMBED_MODEL` and `BGE_RERANK_MODEL`. The last line is one
JSON object.
"""

from __future__ import annotations

import base64
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import numpy as np

from bge_client import Client
from bge_client.codec import EmbedOptions, embed_result
from fakes.runpod_server import JobServer
from fakes.server_process import ServerProcess
from fakes.worker_process import WorkerProcess
from workload import ROOT

ROUNDS = 5
BULK = """
import json, re, sys, time
from pathlib import Path
from bge_client import Client
texts = int(sys.argv[2])
def peak():
    return int(re.search("VmHWM: *\\t *(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
with Client(sys.argv[1], timeout=600) as client:
    client.embed(["текст"])
    alone = {n: client.embed([f"текст номер {n}"]).dense[0] for n in range(0, texts, texts // 200)}
    before, start, out_of_order = peak(), time.perf_counter(), 0
    for number, vectors in enumerate(client.embed_iter(f"текст номер {n}" for n in range(texts))):
        if number in alone and abs(vectors.dense - alone[number]).max() > 1e-5:
            out_of_order += 1
assert number + 1 == texts and out_of_order == 0
print(json.dumps({
    "texts": number + 1, "out of order": out_of_order,
    "texts per second": round(texts / (time.perf_counter() - start)),
    "peak memory before and after, MB": [round(before), round(peak())],
}))
"""


def imports() -> dict[str, Any]:
    """Time each import in a new process, minus the time of an empty process."""
    seconds: dict[str, list[float]] = {"pass": [], "import bge_client": [], "import runpod": []}
    for _ in range(ROUNDS):
        for code, times in seconds.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times.append(time.perf_counter() - start)
    median = {code: statistics.median(times) for code, times in seconds.items()}
    return {
        "import bge_client, s": round(median["import bge_client"] - median["pass"], 2),
        "import runpod, s": round(median["import runpod"] - median["pass"], 2),
        "packages under bge_client": len(closure("requests") | closure("numpy")),
        "packages under runpod": len(closure("runpod")) - 1,
    }


def closure(package: str, seen: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return a package and its installed requirements, without extras."""
    name = re.sub(r"[-_.]+", "-", package).lower()
    if name in seen:
        return seen
    try:
        requirements = requires(name) or []
    except PackageNotFoundError:  # for another platform
        return seen
    seen |= {name}
    for line in requirements:
        if "extra ==" not in line:
            seen = closure(re.split(r"[^\w.-]", line, maxsplit=1)[0], seen)
    return seen


def decode() -> dict[str, Any]:
    random = np.random.default_rng(0)
    dense = random.standard_normal((2000, 1024), np.float32)
    colbert = random.standard_normal((100, 512, 1024), np.float32).astype(np.float16)
    metadata = {"model": "m", "fingerprint": "f", "usage": {"prompt_tokens": 1, "total_tokens": 1}}
    replies = {
        "2,000 dense, base64 float32": metadata
        | {"embeddings": [encoded(vector) for vector in dense], "dimensions": 1024},
        "100 ColBERT, base64 float16": metadata
        | {"colbert_embeddings": [{"shape": [512, 1024], "data": encoded(c)} for c in colbert]},
    }
    options = [EmbedOptions(), EmbedOptions(dense=False, colbert=True, dtype="float16")]
    result = {}
    for (name, reply), option, count in zip(replies.items(), options, (2000, 100), strict=True):
        text = json.dumps(reply)
        result[f"{name}, s"] = timed(lambda: embed_result(json.loads(text), option, count))  # noqa: B023
    for name, array in (("2,000 dense", dense), ("100 ColBERT", colbert)):
        text = json.dumps(np.round(array.astype(np.float64), 7).tolist())
        result[f"{name}, JSON floats, s"] = timed(lambda: np.array(json.loads(text), np.float32))  # noqa: B023
    return result


def encoded(array: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def timed(action: Any) -> float:
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return round(statistics.median(times), 3)


def bulk(texts: int) -> dict[str, Any]:
    """Run the client in a subprocess, to measure its memory alone."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(models(), Path(folder) / "log") as server,
    ):
        server.wait_for(200)
        command = [sys.executable, "-c", BULK, server.url, str(texts)]
        process = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(process.stdout))


def models() -> dict[str, str]:
    return {name: os.environ[name] for name in ("BGE_EMBED_MODEL", "BGE_RERANK_MODEL")}


def workers(texts: int) -> dict[str, Any]:
    """Measure the throughput of one and of three workers, each on one thread."""
    single, triple = (throughput(count, texts) for count in (1, 3))
    return {
        "one worker, texts/s": round(single),
        "three workers, texts/s": round(triple),
        "ratio": round(triple / single, 2),
    }


def throughput(count: int, texts: int) -> float:
    handler = ROOT / "worker" / "handler.py"
    with ExitStack() as stack:
        jobs = stack.enter_context(JobServer())
        env = models() | {"OMP_NUM_THREADS": "1"}
        processes = [stack.enter_context(WorkerProcess(handler, jobs, env)) for _ in range(count)]
        for worker in processes:
            worker.wait_ready(120)
        client = stack.enter_context(Client(jobs.url, timeout=600))
        batch = [f"текст номер {number} " * 30 for number in range(texts)]
        client.embed(batch[:64])
        start = time.perf_counter()
        received = sum(1 for _ in client.embed_iter(batch))
        assert received == texts
        return texts / (time.perf_counter() - start)


def main() -> None:
    results = {}
    for name, measure in (
        ("imports", imports),
        ("decode", decode),
        ("bulk", lambda: bulk(20_000)),
        ("workers", lambda: workers(6_000)),
    ):
        results[name] = measure()
        print(f"\n{name}")
        for field, value in results[name].items():
            print(f"  {field:40}{value}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
