"""What a single query waits for at the HTTP server: `make bench-serve`.

    overhead    one short query on the miniature: its time outside the model, beside a FastAPI
                route that does nothing, asked in turn
    fairness    single queries alone, and while a bulk request of 2,000 texts runs; on the
                miniature and on the full shape, and the same of Infinity's server (or of
                sentence-transformers behind FastAPI with a lock, where Infinity is not installed)

Asked of fairness: the p99 beside the bulk is at most the p99 alone plus two micro-batches. The
last line printed is one JSON object.
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
from results import dated, keep, kept
from workload import ROOT, mixed_texts, prepare

PATIENCE = 180.0  # seconds that a query waits
QUERY = "как найти минимум функции"
BARE = """
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
LOCKED = """
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
    """A server, and how to ask it for vectors."""

    def __init__(self, name: str, url: str, body: dict[str, Any]) -> None:
        self.name, self.url, self.body = name, url, body
        self._client = httpx.Client(timeout=PATIENCE)

    def ask(self, texts: list[str]) -> float:
        """Seconds."""
        began = time.perf_counter()
        self._client.post(self.url, json=self.body | {"input": texts}).raise_for_status()
        return time.perf_counter() - began


@contextmanager
def ours(folder: Path) -> Iterator[tuple[Target, str]]:
    env = {"BGE_EMBED_MODEL": str(folder / "bge-m3"), "BGE_RERANK_MODEL": ""}
    with (
        tempfile.TemporaryDirectory() as log,
        ServerProcess(env, Path(log) / "log") as server,
    ):
        server.wait_for(200, timeout=300)
        model = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
        yield Target("bge-serverless", f"{server.url}/v1/embeddings", {"model": model}), server.url


@contextmanager
def peer(hub: Path, infinity: Path | None) -> Iterator[Target]:
    port = str(free_port())
    if infinity is None:
        name, command = "sentence-transformers, a lock", [sys.executable, "-c", LOCKED, port, hub]
    else:
        name = "Infinity"
        command = [infinity, "v2", "--model-id", hub, "--served-model-name", "peer"]
        command += ["--port", port, "--host", "127.0.0.1", "--engine", "torch", "--device", "cpu"]
        command += ["--no-bettertransformer", "--dtype", "float32", "--no-model-warmup"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([str(part) for part in command], **quiet) as process:
        target = Target(name, f"http://127.0.0.1:{port}/embeddings", {"model": "peer"})
        try:
            wait_until_it_answers(target, process)
            yield target
        finally:
            process.kill()


def wait_until_it_answers(target: Target, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        try:
            target.ask([QUERY])
        except httpx.HTTPError:
            if process.poll() is not None:
                sys.exit(f"{target.name} ended with {process.returncode}")
            time.sleep(0.5)
        else:
            return
    sys.exit(f"{target.name} does not answer")


# --------------------------------------------------------------------------------- overhead


def overhead(folder: Path, rounds: int) -> dict[str, Any]:
    port = free_port()
    with (
        ours(folder) as (_, url),
        subprocess.Popen([sys.executable, "-c", BARE, str(port)]) as bare,
    ):
        try:
            wait_for_port(port)
            return measure_overhead(int(url.rsplit(":", 1)[1]), port, rounds)
        finally:
            bare.kill()


def wait_for_port(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    sys.exit("the bare route does not answer")


def measure_overhead(our_port: int, bare_port: int, rounds: int) -> dict[str, Any]:
    """Both with the standard library's client, whose own part is in both."""
    ours, bare = (HTTPConnection("127.0.0.1", port) for port in (our_port, bare_port))
    outside, floor = [], []
    for _ in range(rounds):
        took, reply = exchange(ours, "/native/embed")
        outside.append(took - reply["timings_ms"]["inference"])
        floor.append(exchange(bare, "/")[0])
    settled = rounds // 10
    return {
        "outside the model, ms": percentiles(outside[settled:]),
        "a bare FastAPI route, ms": percentiles(floor[settled:]),
    }


def exchange(connection: HTTPConnection, route: str) -> tuple[float, Any]:
    """Milliseconds, and the reply."""
    request = json.dumps({"texts": QUERY, "encoding_format": "base64"})
    began = time.perf_counter()
    connection.request("POST", route, request.encode(), {"Content-Type": "application/json"})
    content = connection.getresponse().read()
    return 1e3 * (time.perf_counter() - began), json.loads(content)


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 2) for p in (50, 99)}


# --------------------------------------------------------------------------------- fairness


def fairness(target: Target, texts: list[str], queries: int, url: str | None) -> dict[str, Any]:
    """Seconds of single queries alone and beside the bulk, which is sent again and again.

    `url` is our own server's, which also tells how long a micro-batch of the bulk takes.
    """
    batch = None if url is None else micro_batch(url, texts[:100])
    alone = [target.ask([QUERY]) for _ in range(queries)]
    # A process of its own, so that it can be ended: the caller hangs up.
    with subprocess.Popen(
        [sys.executable, "-c", BULK_CALLER], stdin=subprocess.PIPE, text=True
    ) as bulk:
        assert bulk.stdin is not None
        bulk.stdin.write(json.dumps(target.body | {"url": target.url, "input": texts}))
        bulk.stdin.close()
        time.sleep(2)
        beside = []
        while len(beside) < queries and PATIENCE not in beside:
            try:
                beside.append(target.ask([QUERY]))
            except httpx.ReadTimeout:
                beside.append(PATIENCE)
        bulk.kill()
    result: dict[str, Any] = {
        "alone, s": seconds_percentiles(alone),
        "beside the bulk, s": seconds_percentiles(beside),
        f"gave up after {PATIENCE:g} s": PATIENCE in beside,
    }
    if batch is not None:
        allowed = np.percentile(alone, 99) + 2 * batch
        result["a micro-batch, s"] = round(batch, 3)
        result["allowed, s"] = round(float(allowed), 3)
        result["ok"] = bool(np.percentile(beside, 99) <= allowed)
    return result


def seconds_percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 3) for p in (50, 99)}


def micro_batch(url: str, texts: list[str]) -> float:
    """Seconds that one takes, of texts like these alone."""
    before = batches(url)
    body = {"texts": texts, "encoding_format": "base64"}
    reply = httpx.post(f"{url}/native/embed", json=body, timeout=None).json()
    return float(reply["timings_ms"]["inference"]) / 1e3 / (batches(url) - before)


def batches(url: str) -> float:
    """Micro-batches so far."""
    text = httpx.get(f"{url}/metrics").text
    found = re.search(r"^bge_micro_batches_total (.+)$", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000, help="queries to measure overhead")
    parser.add_argument("--queries", type=int, default=40, help="on the miniature")
    parser.add_argument("--full-queries", type=int, default=10, help="0: leave the full shape out")
    parser.add_argument("--texts", type=int, default=2000, help="in the bulk request")
    parser.add_argument("--infinity", type=Path, help="infinity_emb, in an environment of its own")
    parser.add_argument("--save", action="store_true", help="keep it in benchmarks/results/")
    given = parser.parse_args()
    if given.save:
        kept()
    miniature = Path(os.environ["BGE_EMBED_MODEL"]).resolve().parent
    full = ROOT / "checkpoints" / "bench" / "full"
    texts = mixed_texts(given.texts)
    results: dict[str, Any] = {}

    def show(name: str, result: dict[str, Any]) -> None:
        results[name] = dated(result)
        if given.save:
            keep("beside a bulk", {name: results[name]})
        print(f"\n{name}")
        for field, value in result.items():
            print(f"  {field:32}{value}", flush=True)

    show("overhead", overhead(miniature, given.rounds))
    shapes = [("miniature", miniature, ROOT / "checkpoints" / "miniature", given.queries)]
    if given.full_queries:
        prepare("full", full)
        shapes.append(("full shape", full / "float32", full / "hub", given.full_queries))
    for shape, folder, hub, queries in shapes:
        with ours(folder) as (target, url):
            show(f"{shape}: {target.name}", fairness(target, texts, queries, url))
        with peer(hub / "bge-m3", given.infinity) as target:
            show(f"{shape}: {target.name}", fairness(target, texts, queries, None))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
