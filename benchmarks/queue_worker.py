"""Each form of reply through RunPod's own worker loop: `make bench-queue`.

Runs `worker/handler.py` under the SDK with a fake job server on this machine. Measures single jobs
from submission to reply, and the part of that outside the model; then the rate at which 400 queries
submitted at once are answered, like the backlog of an endpoint that had scaled to zero. Small shape
of random weights. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

from fakes.runpod_server import JobServer
from processes import queue_workers
from results import options, report, with_date
from timing import in_turn, seconds
from workload import BENCH, mixed_texts, model_settings, prepare, texts_of_length

BACKLOG = 400
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


class Job(NamedTuple):
    milliseconds: float
    outside_the_model: float
    size: int


def run_job(jobs: JobServer, payload: dict[str, Any]) -> Job:
    start = perf_counter()
    job = jobs.submit(payload)
    body = jobs.result(job, timeout=60)
    milliseconds = 1e3 * (perf_counter() - start)
    if "error" in body:
        sys.exit(body["error"])
    model = body["output"]["timings_ms"]["inference"]
    return Job(milliseconds, milliseconds - model, jobs.results[job][0].size)


def summarize(measured: list[Job]) -> dict[str, Any]:
    milliseconds, outside_the_model, sizes = zip(*measured, strict=True)
    return with_date(
        {
            "ms": [round(value, 1) for value in milliseconds],
            "median_ms": round(statistics.median(milliseconds), 1),
            "outside_the_model_ms": round(statistics.median(outside_the_model), 1),
            "bytes": sizes[-1],
        }
    )


def run_backlog(jobs: JobServer, texts: list[str]) -> None:
    for job in [jobs.submit({"texts": [text], **BASE64}) for text in texts]:
        jobs.result(job, timeout=60)


def measure(rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    prepare("small", BENCH / "small")
    with queue_workers(model_settings(BENCH / "small" / "float32")) as jobs:
        forms = {form: partial(run_job, jobs, payload) for form, payload in payloads().items()}
        measured = in_turn(rounds + 1, forms)  # the first round is a warm-up
        yield "queue", {form: summarize(values[1:]) for form, values in measured.items()}
        backlog = partial(run_backlog, jobs, texts_of_length(BACKLOG, 12))
        rates = [round(BACKLOG / seconds(backlog), 1) for _ in range(3)]
        entry = with_date({"per_second": rates, "median": statistics.median(rates)})
        yield "backlog", {f"{BACKLOG} queries at once": entry}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    report(measure(args.rounds), save=args.save)


if __name__ == "__main__":
    main()
