"""Latency of single queries at the HTTP server: `make bench-serve`.

    overhead    a short query on the miniature: its time outside the model, in turn with a FastAPI
                route that does nothing
    fairness    single queries alone, and while a bulk request of 2,000 texts runs; on the miniature
                and the full shape; also at Infinity's server (or, if Infinity is not installed, at
                sentence-transformers behind FastAPI with a lock)

The goal of fairness: the p99 beside the bulk is at most the p99 alone plus two micro-batches. The
last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from fakes.server_process import ServerProcess, free_port
from results import read_results, save_results, with_date
from workload import ROOT, mixed_texts, prepare

TIMEOUT = 180.0  # seconds per query
QUERY = "как найти минимум функции"
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
import sys, json, httpx
body = json.load(sys.stdin)
url = body.pop("url")
while True:
    httpx.post(url, json=body, timeout=None).raise_for_status()
"""
LOCKED_SERVER = """
import sys, threading, uvicorn
from fastapi import FastAPI
from sentence_transformers import SentenceTransformer
model, lock, app = SentenceTransformer(sys.argv[2], device="cpu"), threading.Lock(), FastAPI()
@app.post("/embeddings")
def embeddings(body: dict) -> dict:
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    with lock:
        return {"data": [{"embedding": v.tolist()} for v in model.encode(texts)]}
uvicorn.run(app, port=int(sys.argv[1]), log_config=None)
"""


class Target:
    """An embedding server."""

    def __init__(self, name: str, url: str, body: dict[str, Any]) -> None:
        self.name, self.url, self.body = name, url, body
        self._client = httpx.Client(timeout=TIMEOUT)

    def request(self, texts: list[str]) -> float:
        """Embed the texts and return the seconds."""
        start = time.perf_counter()
        self._client.post(self.url, json=self.body | {"input": texts}).raise_for_status()
        return time.perf_counter() - start


@contextmanager
def own_server(folder: Path) -> Iterator[tuple[Target, str]]:
    env = {"BGE_EMBED_MODEL": str(folder / "bge-m3"), "BGE_RERANK_MODEL": ""}
    with (
        tempfile.TemporaryDirectory() as log,
        ServerProcess(env, Path(log) / "log") as server,
    ):
        server.wait_for(200, timeout=300)
        model = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
        yield Target("bge-serverless", f"{server.url}/v1/embeddings", {"model": model}), server.url


@contextmanager
def peer_server(hub: Path, infinity: Path | None) -> Iterator[Target]:
    port = str(free_port())
    if infinity is None:
        name = "sentence-transformers, a lock"
        command = [sys.executable, "-c", LOCKED_SERVER, port, hub]
    else:
        name = "Infinity"
        command = [infinity, "v2", "--model-id", hub, "--served-model-name", "peer"]
        command += ["--port", port, "--host", "127.0.0.1", "--engine", "torch", "--device", "cpu"]
        command += ["--no-bettertransformer", "--dtype", "float32", "--no-model-warmup"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([str(part) for part in command], **quiet) as process:
        target = Target(name, f"http://127.0.0.1:{port}/embeddings", {"model": "peer"})
        try:
            wait_until_ready(target, process)
            yield target
        finally:
            process.kill()


def wait_until_ready(target: Target, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        try:
            target.request([QUERY])
        except httpx.HTTPError:
            if process.poll() is not None:
                sys.exit(f"{target.name} ended with {process.returncode}")
            time.sleep(0.5)
        else:
            return
    sys.exit(f"{target.name} does not answer")


# --------------------------------------------------------------------------------- overhead


def measure_overhead(folder: Path, rounds: int) -> dict[str, Any]:
    port = free_port()
    with (
        own_server(folder) as (_, url),
        subprocess.Popen([sys.executable, "-c", BARE_SERVER, str(port)]) as bare,
    ):
        try:
            wait_for_port(port)
            return compare_overhead(int(url.rsplit(":", 1)[1]), port, rounds)
        finally:
            bare.kill()


def wait_for_port(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    sys.exit("the bare route does not answer")


def compare_overhead(our_port: int, bare_port: int, rounds: int) -> dict[str, Any]:
    """Measure both with the standard library's client, whose cost both include."""
    own, bare = (HTTPConnection("127.0.0.1", port) for port in (our_port, bare_port))
    outside_times, bare_times = [], []
    for _ in range(rounds):
        milliseconds, reply = post(own, "/native/embed")
        outside_times.append(milliseconds - reply["timings_ms"]["inference"])
        bare_times.append(post(bare, "/")[0])
    warm_up = rounds // 10
    return {
        "outside the model, ms": percentiles(outside_times[warm_up:]),
        "a bare FastAPI route, ms": percentiles(bare_times[warm_up:]),
    }


def post(connection: HTTPConnection, route: str) -> tuple[float, Any]:
    """Return the milliseconds and the reply."""
    request = json.dumps({"texts": QUERY, "encoding_format": "base64"})
    start = time.perf_counter()
    connection.request("POST", route, request.encode(), {"Content-Type": "application/json"})
    content = connection.getresponse().read()
    return 1e3 * (time.perf_counter() - start), json.loads(content)


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 2) for p in (50, 99)}


# --------------------------------------------------------------------------------- fairness


def measure_fairness(
    target: Target, texts: list[str], queries: int, url: str | None
) -> dict[str, Any]:
    """Return the seconds of single queries, alone and beside repeated bulk requests.

    `url` is the base URL of our own server, whose /metrics give the time of a micro-batch.
    """
    batch = None if url is None else micro_batch_seconds(url, texts[:100])
    alone = [target.request([QUERY]) for _ in range(queries)]
    # A process of its own, so that the caller can be killed.
    with subprocess.Popen(
        [sys.executable, "-c", BULK_CALLER], stdin=subprocess.PIPE, text=True
    ) as bulk:
        assert bulk.stdin is not None
        bulk.stdin.write(json.dumps(target.body | {"url": target.url, "input": texts}))
        bulk.stdin.close()
        time.sleep(2)
        beside_bulk = []
        while len(beside_bulk) < queries and TIMEOUT not in beside_bulk:
            try:
                beside_bulk.append(target.request([QUERY]))
            except httpx.ReadTimeout:
                beside_bulk.append(TIMEOUT)
        bulk.kill()
    result: dict[str, Any] = {
        "alone, s": seconds_percentiles(alone),
        "beside the bulk, s": seconds_percentiles(beside_bulk),
        f"gave up after {TIMEOUT:g} s": TIMEOUT in beside_bulk,
    }
    if batch is not None:
        limit = np.percentile(alone, 99) + 2 * batch
        result["a micro-batch, s"] = round(batch, 3)
        result["allowed, s"] = round(float(limit), 3)
        result["ok"] = bool(np.percentile(beside_bulk, 99) <= limit)
    return result


def seconds_percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 3) for p in (50, 99)}


def micro_batch_seconds(url: str, texts: list[str]) -> float:
    """Return the seconds of a micro-batch of such texts."""
    before = micro_batches(url)
    body = {"texts": texts, "encoding_format": "base64"}
    reply = httpx.post(f"{url}/native/embed", json=body, timeout=None).json()
    return float(reply["timings_ms"]["inference"]) / 1e3 / (micro_batches(url) - before)


def micro_batches(url: str) -> float:
    """Return the number of micro-batches since the start."""
    text = httpx.get(f"{url}/metrics").text
    match = re.search(r"^bge_micro_batches_total (.+)$", text, re.MULTILINE)
    assert match is not None
    return float(match[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000, help="queries that measure overhead")
    parser.add_argument("--queries", type=int, default=40, help="queries on the miniature")
    parser.add_argument(
        "--full-queries", type=int, default=10, help="on the full shape; 0 omits it"
    )
    parser.add_argument("--texts", type=int, default=2000, help="texts of the bulk request")
    parser.add_argument("--infinity", type=Path, help="infinity_emb in its own environment")
    parser.add_argument("--save", action="store_true", help="save to benchmarks/results/")
    args = parser.parse_args()
    if args.save:
        read_results()
    miniature = Path(os.environ["BGE_EMBED_MODEL"]).resolve().parent
    full = ROOT / "checkpoints" / "bench" / "full"
    texts = mixed_texts(args.texts)
    results: dict[str, Any] = {}

    def show(name: str, result: dict[str, Any]) -> None:
        results[name] = with_date(result)
        if args.save:
            save_results("beside a bulk", {name: results[name]})
        print(f"\n{name}")
        for field, value in result.items():
            print(f"  {field:32}{value}", flush=True)

    show("overhead", measure_overhead(miniature, args.rounds))
    shapes = [("miniature", miniature, ROOT / "checkpoints" / "miniature", args.queries)]
    if args.full_queries:
        prepare("full", full)
        shapes.append(("full shape", full / "float32", full / "hub", args.full_queries))
    for shape, folder, hub, queries in shapes:
        with own_server(folder) as (target, url):
            show(f"{shape}: {target.name}", measure_fairness(target, texts, queries, url))
        with peer_server(hub / "bge-m3", args.infinity) as target:
            show(f"{shape}: {target.name}", measure_fairness(target, texts, queries, None))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
