"""Latency of the HTTP server: `make bench-serve` and `make bench-saturation`.

    overhead    a short query on the miniature: its time outside the model, in turn with a FastAPI
                route that does nothing
    fairness    single queries alone, and while a bulk request of 2,000 texts runs; on the miniature
                and the full shape. The goal: the p99 beside the bulk is at most the p99 alone plus
                two micro-batches
    saturation  small shape. Closed loop: 64 callers, each sends its next query after a reply; the
                capacity. Open loop: queries arrive at random (Poisson) at fractions of our
                capacity, whatever is still unanswered. A query's time counts from its arrival, so
                that waiting in the caller is included

Fairness and saturation include Infinity's server if `--infinity` names its executable. The callers
share the machine's cores with the servers. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx

from callers import Callers, during, open_callers
from fakes.server_process import free_port
from processes import (
    Target,
    infinity_target,
    own_target,
    read_metric,
    running,
    wait_for_response,
)
from results import options, report, with_date
from timing import in_turn, percentiles
from workload import BENCH, MINIATURE, ROOT, mixed_texts, prepare, texts_of_length

QUERY = "как найти минимум функции"
MAX_WAIT = 180.0  # seconds of a query beside a bulk
FRACTIONS = (0.25, 0.5, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0)
TIMEOUT = 20.0  # seconds of a query in a loop
CALLERS = 64
BARE_SERVER = """
import sys, uvicorn
from fastapi import FastAPI, Request, Response
app = FastAPI()
@app.post("/")
async def bare(request: Request) -> Response:
    await request.body()
    return Response(b"{}", media_type="application/json")
uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", log_config=None)
"""
BULK_CALLER = """
import sys, httpx
body, headers = sys.stdin.read(), {"Content-Type": "application/json"}
while True:
    httpx.post(sys.argv[1], content=body, headers=headers, timeout=None).raise_for_status()
"""
Entries = dict[str, Any]

# --------------------------------------------------------------------------------- overhead


def measure_overhead(rounds: int) -> Entries:
    """Measure both with the standard library's client, whose cost both include."""
    port = free_port()
    with (
        own_target(MINIATURE) as own,
        running([sys.executable, "-c", BARE_SERVER, port]) as bare_server,
    ):
        wait_for_response(f"http://127.0.0.1:{port}", bare_server)
        own_connection = HTTPConnection(own.url.removeprefix("http://"))
        bare_connection = HTTPConnection(f"127.0.0.1:{port}")
        posts = {
            "outside the model, ms": partial(post, own_connection, "/native/embed"),
            "a bare FastAPI route, ms": partial(post, bare_connection, "/"),
        }
        milliseconds = in_turn(rounds, posts)
    warm_up = rounds // 10
    return {name: percentiles(values[warm_up:], 2) for name, values in milliseconds.items()}


def post(connection: HTTPConnection, route: str) -> float:
    """Return the milliseconds outside the model."""
    request = json.dumps({"texts": QUERY, "encoding_format": "base64"})
    start = perf_counter()
    connection.request("POST", route, request.encode(), {"Content-Type": "application/json"})
    content = connection.getresponse().read()
    milliseconds = 1e3 * (perf_counter() - start)
    return milliseconds - float(json.loads(content).get("timings_ms", {}).get("inference", 0))


# --------------------------------------------------------------------------------- fairness


def measure_fairness(target: Target, texts: list[str], queries: int) -> Entries:
    """Return the seconds of single queries, alone and beside repeated bulk requests."""
    with httpx.Client(base_url=target.url, timeout=MAX_WAIT) as client:
        alone = [query_seconds(client, target) for _ in range(queries)]
        with bulk_requests(target, texts):
            beside_bulk: list[float] = []
            while len(beside_bulk) < queries and MAX_WAIT not in beside_bulk:
                beside_bulk.append(query_seconds(client, target))
    return {
        "alone, s": percentiles(alone, 3),
        "beside the bulk, s": percentiles(beside_bulk, 3),
        f"gave up after {MAX_WAIT:g} s": MAX_WAIT in beside_bulk,
    }


def query_seconds(client: httpx.Client, target: Target) -> float:
    start = perf_counter()
    try:
        client.post(target.route, json=target.body([QUERY])).raise_for_status()
    except httpx.ReadTimeout:
        return MAX_WAIT
    return perf_counter() - start


@contextmanager
def bulk_requests(target: Target, texts: list[str]) -> Iterator[None]:
    """Repeat a request of all texts, in a process of its own so that it can be killed."""
    command = [sys.executable, "-c", BULK_CALLER, target.url + target.route]
    with running(command, stdin=subprocess.PIPE, text=True) as process:
        json.dump(target.body(texts), process.stdin)
        process.stdin.close()
        time.sleep(2)
        yield
        if process.poll() is not None:
            sys.exit(f"a bulk request to {target.name} failed")


def check_goal(entry: Entries, micro_batch: float) -> Entries:
    """Compare the p99 with the goal, given the seconds of a micro-batch."""
    limit = entry["alone, s"]["p99"] + 2 * micro_batch
    return entry | {
        "a micro-batch, s": round(micro_batch, 3),
        "allowed, s": round(limit, 3),
        "ok": entry["beside the bulk, s"]["p99"] <= limit,
    }


def micro_batch_seconds(url: str, texts: list[str]) -> float:
    """Return the seconds of a micro-batch of such texts."""
    before = read_metric(url, "bge_micro_batches_total")[""]
    body = {"texts": texts, "encoding_format": "base64"}
    reply = httpx.post(f"{url}/native/embed", json=body, timeout=None).json()
    micro_batches = read_metric(url, "bge_micro_batches_total")[""] - before
    return float(reply["timings_ms"]["inference"]) / 1e3 / micro_batches


# ------------------------------------------------------------------------------- saturation


async def measure_saturation(targets: list[Target], rounds: int, duration: float) -> Entries:
    texts = texts_of_length(200, 12)
    closed: dict[str, list[Entries]] = {target.name: [] for target in targets}
    for _ in range(rounds):
        for target in targets:
            closed[target.name].append(await closed_loop(target, texts, duration))
            print(f"closed, {target.name}: {closed[target.name][-1]}", flush=True)
    capacity = statistics.median(result["per_second"] for result in closed[targets[0].name])
    offered: dict[str, list[Entries]] = {target.name: [] for target in targets}
    for fraction in FRACTIONS:
        for target in targets:
            rate = round(fraction * capacity, 1)
            offered[target.name].append(await open_loop(target, texts, rate, duration))
            print(f"offered, {target.name}: {offered[target.name][-1]}", flush=True)
    about = f"queries of 12 tokens, {duration:g} s each, {CALLERS} callers"
    return {
        name: with_date({"about": about, "closed": closed[name], "offered": offered[name]})
        for name in closed
    }


async def closed_loop(target: Target, texts: list[str], duration: float) -> Entries:
    rng = random.Random(0)
    async with open_callers(target.url, TIMEOUT) as callers:
        queries = (send_query(callers, target, rng.choice(texts)) for _ in during(duration))
        elapsed = await callers.run(CALLERS, queries)
        return summary(callers, elapsed)


async def open_loop(target: Target, texts: list[str], rate: float, duration: float) -> Entries:
    rng = random.Random(0)
    async with open_callers(target.url, TIMEOUT) as callers, asyncio.TaskGroup() as queries:
        start = perf_counter()
        for offset in arrivals(rng, rate, duration):
            due = start + offset
            await asyncio.sleep(due - perf_counter())
            queries.create_task(send_query(callers, target, rng.choice(texts), due))
    # Until the last reply: answers after the last arrival must not raise the rate.
    return {"offered": rate, **summary(callers, perf_counter() - start)}


async def send_query(callers: Callers, target: Target, text: str, due: float | None = None) -> None:
    await callers.post(target.route, json.dumps(target.body([text])), due)


def arrivals(rng: random.Random, rate: float, duration: float) -> Iterator[float]:
    offset = rng.expovariate(rate)
    while offset < duration:
        yield offset
        offset += rng.expovariate(rate)


def summary(callers: Callers, elapsed: float) -> Entries:
    p50, p99 = percentiles(callers.milliseconds or [float("nan")], 1).values()
    return {
        "per_second": round(len(callers.milliseconds) / elapsed, 1),
        "p50_ms": p50,
        "p99_ms": p99,
        "statuses": callers.statuses(),
    }


# ----------------------------------------------------------------------------- command line


def measure(args: argparse.Namespace) -> Iterator[tuple[str, Entries]]:
    if args.what == "overhead":
        yield "beside a bulk", {"overhead": with_date(measure_overhead(args.posts))}
    elif args.what == "fairness":
        yield from fairness(args)
    else:
        yield "serving", {"small": saturation(args)}


def fairness(args: argparse.Namespace) -> Iterator[tuple[str, Entries]]:
    shapes = [("miniature", MINIATURE, ROOT / "checkpoints" / "miniature", args.queries)]
    if args.full_queries:
        full = BENCH / "full"
        prepare("full", full)
        shapes.append(("full shape", full / "float32", full / "hub", args.full_queries))
    texts = mixed_texts(args.texts)
    for shape, folder, hub, queries in shapes:
        with own_target(folder) as target:
            micro_batch = micro_batch_seconds(target.url, texts[:100])
            entry = check_goal(measure_fairness(target, texts, queries), micro_batch)
            yield "beside a bulk", {f"{shape}: {target.name}": with_date(entry)}
        if args.infinity:
            with infinity_target(args.infinity, hub) as target:
                entry = measure_fairness(target, texts, queries)
                yield "beside a bulk", {f"{shape}: {target.name}": with_date(entry)}


def saturation(args: argparse.Namespace) -> Entries:
    models = BENCH / "small"
    prepare("small", models)
    with ExitStack() as stack:
        targets = [stack.enter_context(own_target(models / "float32"))]
        if args.infinity:
            targets.append(stack.enter_context(infinity_target(args.infinity, models / "hub")))
        return asyncio.run(measure_saturation(targets, args.rounds, args.seconds))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("what", choices=("overhead", "fairness", "saturation"))
    parser.add_argument("--infinity", type=Path, help="infinity_emb in its own environment")
    parser.add_argument("--posts", type=int, default=1000, help="overhead: requests")
    parser.add_argument("--queries", type=int, default=40, help="fairness: on the miniature")
    parser.add_argument("--full-queries", type=int, default=10, help="0 omits the full shape")
    parser.add_argument("--texts", type=int, default=2000, help="fairness: of the bulk request")
    parser.add_argument("--rounds", type=int, default=3, help="saturation: of the closed loop")
    parser.add_argument("--seconds", type=float, default=10.0, help="saturation: of each loop")
    args = parser.parse_args()
    report(measure(args), save=args.save)


if __name__ == "__main__":
    main()
