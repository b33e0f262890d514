"""Concurrent clients against the HTTP server: `make load` and `make soak`.

    load      256 clients send 20,000 mixed requests; every reply is compared with the engine's own
              vectors and scores of the same texts
    overload  twice as many clients as the queue has slots: the others are refused at once, and
              memory stays bounded
    soak      mixed load with invalid requests for ten minutes: memory stays flat, the queue is
              empty at the end, and /metrics agrees with the clients' counts

Uses the models of `BGE_EMBED_MODEL` and `BGE_RERANK_MODEL`, by default the miniature. The clients
share the machine's cores with the server. The last line of stdout is one JSON object; the exit code
is 1 if a request was lost, mixed up or miscounted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

from bge_worker.engine.engine import PackedEngine
from bge_worker.engine.outputs import Outputs
from bge_worker.engine.packing import round_robin
from bge_worker.serving.requests import DEFAULT_PAIR_LENGTH, MAX_LENGTH
from bge_worker.settings import Settings
from fakes.server_process import ServerProcess
from workload import corpus

TEXTS = 400
BULK = 12  # requests of all texts
QUERY = "как найти минимум функции"
MIX = {"single": 12, "batch": 4, "openai": 2, "rerank": 2}
BAD = [
    ("/native/embed", {"texts": []}, 422),
    ("/native/embed", {"texts": ["a"], "max_length": 1}, 422),
    ("/v1/embeddings", {"input": "a", "model": "another"}, 404),
    ("/rerank", {"query": "a"}, 422),
    ("/embed", "not JSON", 422),
    ("/nowhere", {}, 404),
]


class Reference:
    """Texts with the engine's own vectors and scores."""

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in ("BGE_EMBED_MODEL", "BGE_RERANK_MODEL")}
        self._engine = PackedEngine(Settings.from_env(environment))
        rng = random.Random(0)
        words = " ".join(corpus()).split()
        self.texts = [" ".join(rng.choices(words, k=rng.randint(1, 40))) for _ in range(TEXTS)]
        self.vectors = self.embed(self.texts)
        self.scores = np.concatenate([self.score([text]) for text in self.texts])
        self.model = self._engine.models["embed"].model

    def embed(self, texts: list[str]) -> np.ndarray:
        waiting = self._engine.encode_texts(texts, MAX_LENGTH)
        vectors: list[np.ndarray] = []
        while waiting:
            lengths = [len(text.ids) for text in waiting]
            (count,) = round_robin([lengths], self._engine.runtime.max_batch_tokens)
            results = self._engine.run(Outputs.DENSE, waiting[:count])
            vectors += [result.dense for result in results]
            waiting = waiting[count:]
        return np.stack(vectors)

    def score(self, texts: list[str]) -> np.ndarray:
        pairs = self._engine.encode_pairs([QUERY], texts, DEFAULT_PAIR_LENGTH)
        logits = self._engine.run(Outputs.RELEVANCE, pairs)
        return np.array(1 / (1 + np.exp(-np.array(logits))))

    def seconds_for(self, texts: int, pairs: int) -> float:
        """Estimate the engine's own time for so many texts and pairs, in full micro-batches."""
        rates = []
        for compute, batch in ((self.embed, self.texts), (self.score, self.texts[:32])):
            start = time.perf_counter()
            for _ in range(4):
                compute(batch)
            rates.append(4 * len(batch) / (time.perf_counter() - start))
        return texts / rates[0] + pairs / rates[1]


class Callers:
    """Send requests and count wrong replies."""

    def __init__(self, url: str, reference: Reference) -> None:
        self._url = url
        self._reference = reference
        self.responses: Counter[tuple[str, int]] = Counter()  # by route and status
        self.texts: Counter[str] = Counter()  # computed, by kind of request
        self.wrong = 0

    async def send(self, session: aiohttp.ClientSession, kind: str, rng: random.Random) -> None:
        if kind == "bad":
            route, body, expected = rng.choice(BAD)
            status, _ = await self._post(session, route, body)
            self.wrong += status != expected
            return
        count = 1 if kind in ("single", "openai") else rng.randint(2, 16)
        indices = [rng.randrange(TEXTS) for _ in range(count)]
        route, body = self._request(kind, [self._reference.texts[index] for index in indices])
        status, reply = await self._post(session, route, body)
        if status == 200:
            self.texts[kind] += count
            self.wrong += not self._is_correct(kind, reply, indices)

    def _request(self, kind: str, texts: list[str]) -> tuple[str, dict[str, Any]]:
        if kind == "rerank":
            return "/v2/rerank", {"query": QUERY, "documents": texts}
        if kind == "openai":
            return "/v1/embeddings", {"model": self._reference.model, "input": texts}
        return "/native/embed", {"texts": texts}

    def _is_correct(self, kind: str, reply: Any, indices: list[int]) -> bool:
        if kind == "rerank":
            ranked = sorted(reply["results"], key=lambda result: result["index"])
            scores = [result["relevance_score"] for result in ranked]
            return bool(np.allclose(scores, self._reference.scores[indices], atol=1e-4))
        vectors = (
            [item["embedding"] for item in reply["data"]]
            if kind == "openai"
            else reply["embeddings"]
        )
        return bool(np.allclose(vectors, self._reference.vectors[indices], atol=1e-5))

    async def _post(self, session: aiohttp.ClientSession, route: str, body: Any) -> tuple[int, Any]:
        content = body if isinstance(body, str) else json.dumps(body)
        async with session.post(self._url + route, data=content) as reply:
            answer = await reply.read()
        self.responses[route, reply.status] += 1
        return reply.status, json.loads(answer)


async def run_callers(
    clients: int, caller: Callable[[aiohttp.ClientSession, random.Random], Awaitable[None]]
) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await asyncio.gather(*(caller(session, random.Random(i)) for i in range(clients)))


def memory_mb(server: ServerProcess) -> float:
    """Return the server's resident memory."""
    return float(psutil.Process(server.process.pid).memory_info().rss) / 1e6


async def read_metric(url: str, name: str) -> dict[str, float]:
    """Return a metric's values by their labels."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as reply:
        lines = [line.rsplit(" ", 1) for line in (await reply.text()).splitlines()]
    return {
        key.removeprefix(name): float(value) for key, value in lines if key.split("{")[0] == name
    }


async def run_load(
    server: ServerProcess, reference: Reference, clients: int, requests: int
) -> dict[str, Any]:
    kinds, weights = [*MIX], [*MIX.values()]
    callers = Callers(server.url, reference)
    remaining = iter(range(requests))

    async def caller(session: aiohttp.ClientSession, rng: random.Random) -> None:
        for _ in remaining:
            await callers.send(session, rng.choices(kinds, weights)[0], rng)

    start = time.perf_counter()
    await run_callers(clients, caller)
    seconds = time.perf_counter() - start
    statuses: Counter[int] = Counter()
    for (_, status), count in callers.responses.items():
        statuses[status] += count
    pairs = callers.texts["rerank"]
    engine_seconds = reference.seconds_for(callers.texts.total() - pairs, pairs)
    bulk, bulk_engine_seconds = (
        await bulk_seconds(server.url, reference),
        reference.seconds_for(BULK * TEXTS, 0),
    )
    return {
        "clients": clients,
        "requests": requests,
        "answered": dict(statuses),
        "wrong": callers.wrong,
        "requests_per_second": round(requests / seconds, 1),
        "texts_per_second": round(callers.texts.total() / seconds, 1),
        "share_of_the_engine_s_own": round(engine_seconds / seconds, 2),
        "bulk_texts_per_second": round(BULK * TEXTS / bulk, 1),
        "bulk_share_of_the_engine_s_own": round(bulk_engine_seconds / bulk, 2),
        "ok": callers.wrong == 0 and statuses == {200: requests},
    }


async def bulk_seconds(url: str, reference: Reference) -> float:
    """Return the seconds of an indexing job: requests of 400 texts, four at a time, in base64."""
    body = json.dumps({"texts": reference.texts, "encoding_format": "base64"})
    remaining = iter(range(BULK))

    async def caller(session: aiohttp.ClientSession, rng: random.Random) -> None:
        for _ in remaining:
            async with session.post(f"{url}/native/embed", data=body) as reply:
                assert reply.status == 200
                await reply.read()

    start = time.perf_counter()
    await run_callers(4, caller)
    return time.perf_counter() - start


async def run_overload(server: ServerProcess, reference: Reference, limit: int) -> dict[str, Any]:
    """Send long requests from twice as many callers as the queue has slots."""
    before = memory_mb(server)
    body = json.dumps({"texts": reference.texts[:64]})
    statuses: Counter[int] = Counter()

    async def caller(session: aiohttp.ClientSession, rng: random.Random) -> None:
        for _ in range(3):
            async with session.post(f"{server.url}/native/embed", data=body) as reply:
                await reply.read()
            statuses[reply.status] += 1
            assert reply.status == 200 or reply.headers["Retry-After"] == "1"

    await run_callers(2 * limit, caller)
    # By the server's own clock, since this process is busy with its callers.
    lines = [line.split("| ", 1)[1] for line in server.log.splitlines() if '"status":429' in line]
    refusals = [json.loads(line)["ms"] for line in lines]
    return {
        "callers": 2 * limit,
        "limit": limit,
        "answered": dict(statuses),
        "refused_within_ms": {p: round(float(np.percentile(refusals, p)), 2) for p in (50, 99)},
        "memory_mb": [round(before), round(memory_mb(server))],
        "ok": statuses.keys() == {200, 429},
    }


async def run_soak(server: ServerProcess, reference: Reference, seconds: float) -> dict[str, Any]:
    kinds, weights = [*MIX, "bad"], [*MIX.values(), 4]
    callers = Callers(server.url, reference)
    end = time.monotonic() + seconds
    samples: list[tuple[float, float]] = []

    async def caller(session: aiohttp.ClientSession, rng: random.Random) -> None:
        while time.monotonic() < end:
            await callers.send(session, rng.choices(kinds, weights)[0], rng)

    async def watch() -> None:
        start = time.monotonic()
        while time.monotonic() < end:
            samples.append((time.monotonic() - start, memory_mb(server)))
            print(f"\r{samples[-1][0]:5.0f} s {samples[-1][1]:6.0f} MB", end="", file=sys.stderr)
            await asyncio.sleep(min(5, seconds / 20))

    before = await read_metric(server.url, "bge_requests_total")
    texts_before = await read_metric(server.url, "bge_texts_total")
    await asyncio.gather(run_callers(32, caller), watch())
    depth = await read_metric(server.url, "bge_queue_depth")
    after = await read_metric(server.url, "bge_requests_total")
    texts = await read_metric(server.url, "bge_texts_total")
    counted: Counter[tuple[str, int]] = Counter()
    for key, value in after.items():
        route, status = key.split('"')[1:4:2]
        if route != "/metrics" and route != "/ping":
            counted["/nowhere" if route == "unknown" else route, int(status)] += int(
                value - before.get(key, 0)
            )
    # The heap fills up first; it must not keep growing.
    second_half = [sample for sample in samples if sample[0] >= seconds / 2]
    slope, _ = np.polyfit(*zip(*second_half, strict=True), 1)
    return {
        "seconds": seconds,
        "requests": sum(callers.responses.values()),
        "wrong": callers.wrong,
        "memory_mb": [round(samples[0][1]), round(max(used for _, used in samples))],
        "memory_slope_mb_per_minute_in_the_second_half": round(60 * float(slope), 2),
        "queue_at_the_end": depth[""],
        "metrics_add_up": +counted == callers.responses
        and texts[""] - texts_before[""] == callers.texts.total(),
        "ok": callers.wrong == 0
        and depth[""] == 0
        and +counted == callers.responses
        and float(60 * slope) < second_half[0][1] / 100,  # less than 1% per minute
    }


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    reference = Reference()
    env = {name: os.environ[name] for name in ("BGE_EMBED_MODEL", "BGE_RERANK_MODEL")}
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(env, Path(folder) / "log") as server,
    ):
        server.wait_for(200)
        if args.what == "soak":
            return {"soak": await run_soak(server, reference, args.seconds)}
        if args.what == "overload":
            return {"overload": await run_overload(server, reference, 512)}
        return {"load": await run_load(server, reference, args.clients, args.requests)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("load", "overload", "soak"))
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=600)
    results = asyncio.run(measure(parser.parse_args()))
    for name, result in results.items():
        print(f"\n{name}")
        for field, value in result.items():
            print(f"  {field:32}{value}")
    print(json.dumps(results))
    sys.exit(not all(result["ok"] for result in results.values()))


if __name__ == "__main__":
    main()
