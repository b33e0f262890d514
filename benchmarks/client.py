"""Costs of the client: `make bench-client`.

    imports    import time and number of required packages, compared with `runpod`
    decode     decoding 2,000 dense vectors of 1,024 and 100 ColBERT arrays of 512 tokens, from
               base64 and from JSON floats
    bulk       20,000 texts through `embed_iter` and the HTTP server: order, throughput, peak memory
    workers    throughput of one and of three queue workers behind one endpoint

Uses the miniature, or the models in `BGE_EMBED_MODEL` and `BGE_RERANK_MODEL`. The last line of
stdout is one JSON object.
"""

from __future__ import annotations

import base64
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, requires
from time import perf_counter
from typing import Any

import numpy as np

from bge_client import Client
from bge_client.codec import EmbedOptions, embed_result
from processes import http_server, queue_workers
from results import options, report, with_date
from timing import in_turn, seconds
from workload import served_models

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


def median_seconds(actions: dict[str, Callable[[], object]]) -> dict[str, float]:
    timed = {name: partial(seconds, action) for name, action in actions.items()}
    return {name: statistics.median(times) for name, times in in_turn(ROUNDS, timed).items()}


def measure_imports() -> dict[str, Any]:
    """Time each import in a new process, minus the time of an empty process."""
    lines = ("pass", "import bge_client", "import runpod")
    median = median_seconds(
        {line: partial(subprocess.run, [sys.executable, "-c", line], check=True) for line in lines}
    )
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


def measure_decoding() -> dict[str, Any]:
    random = np.random.default_rng(0)
    dense = random.standard_normal((2000, 1024), np.float32)
    colbert = random.standard_normal((100, 512, 1024), np.float32).astype(np.float16)
    metadata = {"model": "m", "fingerprint": "f", "usage": {"prompt_tokens": 1, "total_tokens": 1}}
    vectors = [encoded(vector) for vector in dense]
    matrices = [{"shape": [512, 1024], "data": encoded(matrix)} for matrix in colbert]
    dense_reply = json.dumps(metadata | {"embeddings": vectors, "dimensions": 1024})
    colbert_reply = json.dumps(metadata | {"colbert_embeddings": matrices})
    dense_floats, colbert_floats = floats(dense), floats(colbert)
    colbert_options = EmbedOptions(dense=False, colbert=True, dtype="float16")
    median = median_seconds(
        {
            "2,000 dense, base64 float32, s": lambda: embed_result(
                json.loads(dense_reply), EmbedOptions(), 2000
            ),
            "100 ColBERT, base64 float16, s": lambda: embed_result(
                json.loads(colbert_reply), colbert_options, 100
            ),
            "2,000 dense, JSON floats, s": lambda: np.array(json.loads(dense_floats), np.float32),
            "100 ColBERT, JSON floats, s": lambda: np.array(json.loads(colbert_floats), np.float32),
        }
    )
    return {name: round(value, 3) for name, value in median.items()}


def encoded(array: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def floats(array: np.ndarray[Any, Any]) -> str:
    return json.dumps(np.round(array.astype(np.float64), 7).tolist())


def measure_bulk(texts: int) -> dict[str, Any]:
    """Run the client in a subprocess, to measure its memory alone."""
    with http_server(served_models()) as server:
        command = [sys.executable, "-c", BULK, server.url, str(texts)]
        process = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(process.stdout))


def measure_workers(texts: int) -> dict[str, Any]:
    """Measure the throughput of one and of three workers, each on one thread."""
    single, triple = (throughput(count, texts) for count in (1, 3))
    return {
        "one worker, texts/s": round(single),
        "three workers, texts/s": round(triple),
        "ratio": round(triple / single, 2),
    }


def throughput(workers: int, texts: int) -> float:
    batch = [f"текст номер {number} " * 30 for number in range(texts)]
    with (
        queue_workers(served_models() | {"OMP_NUM_THREADS": "1"}, workers) as jobs,
        Client(jobs.url, timeout=600) as client,
    ):
        client.embed(batch[:64])
        start = perf_counter()
        assert sum(1 for _ in client.embed_iter(batch)) == texts
        return texts / (perf_counter() - start)


def measure(texts: int) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "client", {"imports": with_date(measure_imports())}
    yield "client", {"decode": with_date(measure_decoding())}
    yield "client", {"bulk": with_date(measure_bulk(texts))}
    yield "client", {"workers": with_date(measure_workers(3 * texts // 10))}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--texts", type=int, default=20_000)
    args = parser.parse_args()
    report(measure(args.texts), save=args.save)


if __name__ == "__main__":
    main()
