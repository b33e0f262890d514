"""Replies of each form through RunPod's own worker loop: `make bench-queue`.

`worker/handler.py` under the SDK, jobs from a stand-in of RunPod's job server on this machine, one
after another: from handing a job in to having its reply, and how much of that is not the model.
Then 400 queries handed in at once, as they wait when an endpoint has scaled to zero: how many a
second. Small shape of random weights. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

from fakes.runpod_server import JobServer
from fakes.worker_process import WorkerProcess
from results import dated, keep, kept
from workload import BENCH, ROOT, mixed_texts, models_in, of_length, prepare

SPARSE = {"return_dense": False, "return_sparse": True}
COLBERT = {"return_dense": False, "return_colbert": True}
BASE64 = {"encoding_format": "base64"}


def jobs() -> dict[str, dict[str, Any]]:
    mixed = {"texts": mixed_texts(8)}
    (query,) = of_length(1, 12)
    return {
        "1 query, dense, floats": {"texts": [query]},
        "1 query, dense, base64": {"texts": [query], **BASE64},
        "8 texts, dense, floats": mixed,
        "8 texts, dense, base64": mixed | BASE64,
        "8 texts, sparse": mixed | SPARSE,
        "8 texts, ColBERT, floats": mixed | COLBERT,
        "8 texts, ColBERT, base64 fp16": mixed | COLBERT | BASE64 | {"dtype": "float16"},
        "8 texts, all three, base64 fp16": mixed
        | {"return_sparse": True, "return_colbert": True, "dtype": "float16", **BASE64},
        "rerank 25 documents": {"query": query, "documents": of_length(25, 128)},
    }


def measure(rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    env = models_in(BENCH / "small" / "float32")
    with (
        JobServer() as server,
        WorkerProcess(ROOT / "worker" / "handler.py", server, env) as worker,
    ):
        worker.wait_ready(120)
        return one_by_one(server, rounds), backlog(server, 400)


def one_by_one(server: JobServer, rounds: int) -> dict[str, Any]:
    forms = jobs()
    took: dict[str, list[tuple[float, float]]] = {form: [] for form in forms}
    sizes = {}
    for number in range(rounds + 1):
        for form, payload in forms.items():
            began = time.perf_counter()
            job = server.submit(payload)
            body = server.result(job, timeout=60)
            milliseconds = 1e3 * (time.perf_counter() - began)
            if "error" in body:
                sys.exit(f"{form}: {body['error']}")
            if number:  # the first round is a warm-up
                model = body["output"]["timings_ms"]["inference"]
                took[form].append((milliseconds, milliseconds - model))
            sizes[form] = server.results[job][0].size
    return {
        form: dated(
            {
                "ms": [round(whole, 1) for whole, _ in taken],
                "median_ms": round(statistics.median(whole for whole, _ in taken), 1),
                "outside_the_model_ms": round(statistics.median(rest for _, rest in taken), 1),
                "bytes": sizes[form],
            }
        )
        for form, taken in took.items()
    }


def backlog(server: JobServer, count: int) -> dict[str, Any]:
    rates = []
    for _ in range(3):
        began = time.perf_counter()
        waiting = [server.submit({"texts": [text], **BASE64}) for text in of_length(count, 12)]
        for job in waiting:
            server.result(job, timeout=60)
        rates.append(round(count / (time.perf_counter() - began), 1))
    entry = dated({"per_second": rates, "median": statistics.median(rates)})
    return {f"{count} queries at once": entry}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--save", action="store_true", help="keep it in benchmarks/results/")
    given = parser.parse_args()
    if given.save:
        kept()
    prepare("small", BENCH / "small")
    forms, waited = measure(given.rounds)
    for form, found in forms.items():
        print(
            f"{form:34}{found['median_ms']:8.1f} ms, {found['outside_the_model_ms']:6.1f} outside "
            f"the model,{found['bytes']:10,} bytes"
        )
    for name, found in waited.items():
        print(f"{name:34}{found['median']:8.1f} a second")
    if given.save:
        keep("queue", forms)
        keep("backlog", waited)
    print(json.dumps({"queue": forms, "backlog": waited}))


if __name__ == "__main__":
    main()
