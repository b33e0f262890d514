"""Each form of reply through RunPod's own worker loop: `make bench-queue`.

Runs `worker/handler.py` under the SDK with a fake job server on this machine. Measures single jobs
from submission to reply, and the part of that outside the model; then the rate at which 400 queries
submitted at once are answered, like the backlog of an endpoint that had scaled to zero. Small shape
of random weights. The last line of stdout is one JSON object.
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
from results import read_results, save_results, with_date
from workload import BENCH, ROOT, mixed_texts, model_settings, prepare, texts_of_length

SPARSE = {"return_dense": False, "return_sparse": True}
COLBERT = {"return_dense": False, "return_colbert": True}
BASE64 = {"encoding_format": "base64"}


def payloads() -> dict[str, dict[str, Any]]:
    mixed = {"texts": mixed_texts(8)}
    (query,) = texts_of_length(1, 12)
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
        "rerank 25 documents": {"query": query, "documents": texts_of_length(25, 128)},
    }


def measure(rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    env = model_settings(BENCH / "small" / "float32")
    with (
        JobServer() as server,
        WorkerProcess(ROOT / "worker" / "handler.py", server, env) as worker,
    ):
        worker.wait_ready(120)
        return measure_jobs(server, rounds), measure_backlog(server, 400)


def measure_jobs(server: JobServer, rounds: int) -> dict[str, Any]:
    forms = payloads()
    times: dict[str, list[tuple[float, float]]] = {form: [] for form in forms}
    sizes = {}
    for number in range(rounds + 1):
        for form, payload in forms.items():
            start = time.perf_counter()
            job = server.submit(payload)
            body = server.result(job, timeout=60)
            milliseconds = 1e3 * (time.perf_counter() - start)
            if "error" in body:
                sys.exit(f"{form}: {body['error']}")
            if number:  # the first round is a warm-up
                model = body["output"]["timings_ms"]["inference"]
                times[form].append((milliseconds, milliseconds - model))
            sizes[form] = server.results[job][0].size
    return {
        form: with_date(
            {
                "ms": [round(total, 1) for total, _ in samples],
                "median_ms": round(statistics.median(total for total, _ in samples), 1),
                "outside_the_model_ms": round(
                    statistics.median(outside for _, outside in samples), 1
                ),
                "bytes": sizes[form],
            }
        )
        for form, samples in times.items()
    }


def measure_backlog(server: JobServer, count: int) -> dict[str, Any]:
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        jobs = [server.submit({"texts": [text], **BASE64}) for text in texts_of_length(count, 12)]
        for job in jobs:
            server.result(job, timeout=60)
        rates.append(round(count / (time.perf_counter() - start), 1))
    entry = with_date({"per_second": rates, "median": statistics.median(rates)})
    return {f"{count} queries at once": entry}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--save", action="store_true", help="save to benchmarks/results/")
    args = parser.parse_args()
    if args.save:
        read_results()
    prepare("small", BENCH / "small")
    forms, backlog = measure(args.rounds)
    for form, entry in forms.items():
        print(
            f"{form:34}{entry['median_ms']:8.1f} ms, {entry['outside_the_model_ms']:6.1f} outside "
            f"the model,{entry['bytes']:10,} bytes"
        )
    for name, entry in backlog.items():
        print(f"{name:34}{entry['median']:8.1f} a second")
    if args.save:
        save_results("queue", forms)
        save_results("backlog", backlog)
    print(json.dumps({"queue": forms, "backlog": backlog}))


if __name__ == "__main__":
    main()
