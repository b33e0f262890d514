"""Many clients at once against the HTTP server: `make load` and `make soak`.

    load      256 clients send 20,000 mixed requests; every answer is checked against the vectors
              that the engine gives the same texts on its own
    overload  twice as many clients as the queue holds: the rest is refused at once, and memory
              stays bounded
    soak      mixed load with bad input among it for ten minutes: memory flat, queue empty at the
              end, /metrics adds up with what the clients counted.

On the miniature, or what `BGE_EMBED_MODEL` and `BGE_RERANK_MODEL` name. The clients share the
machine's cores with the server. The last line printed is one JSON object; the exit code is 1 if
anything was lost, mixed up or miscounted.
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
BULK = 12  # requests of all the texts
QUERY = "как найти минимум функции"
MIX = {"one": 12, "many": 4, "openai": 2, "rerank": 2}
BAD = [
    ("/native/embed", {"texts": []}, 422),
    ("/native/embed", {"texts": ["a"], "max_length": 1}, 422),
    ("/v1/embeddings", {"input": "a", "model": "another"}, 404),
    ("/rerank", {"query": "a"}, 422),
    ("/embed", "not JSON", 422),
    ("/nowhere", {}, 404),
]


class Truth:
    """Texts, and what the engine alone says of them."""

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in ("BGE_EMBED_MODEL", "BGE_RERANK_MODEL")}
        self._engine = PackedEngine(Settings.from_env(environment))
        draw = random.Random(0)
        words = " ".join(corpus()).split()
        self.texts = [" ".join(draw.choices(words, k=draw.randint(1, 40))) for _ in range(TEXTS)]
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
        pairs = self._engine.encode_pairs(QUERY, texts, DEFAULT_PAIR_LENGTH)
        logits = self._engine.run(Outputs.RELEVANCE, pairs)
        return np.array(1 / (1 + np.exp(-np.array(logits))))

    def seconds_for(self, texts: int, pairs: int) -> float:
        """What the engine alone takes for as many, in whole micro-batches of these texts."""
        rates = []
        for compute, batch in ((self.embed, self.texts), (self.score, self.texts[:32])):
            began = time.perf_counter()
            for _ in range(4):
                compute(batch)
            rates.append(4 * len(batch) / (time.perf_counter() - began))
        return texts / rates[0] + pairs / rates[1]


class Clients:
    """What many callers send, and whether each got its own answer."""

    def __init__(self, url: str, truth: Truth) -> None:
        self._url = url
        self._truth = truth
        self.answered: Counter[tuple[str, int]] = Counter()
        self.texts: Counter[str] = Counter()  # computed, by kind of request
        self.wrong = 0

    async def send(self, session: aiohttp.ClientSession, kind: str, draw: random.Random) -> int:
        if kind == "bad":
            route, body, expected = draw.choice(BAD)
            status, _ = await self._post(session, route, body)
            self.wrong += status != expected
            return status
        count = 1 if kind in ("one", "openai") else draw.randint(2, 16)
        places = [draw.randrange(TEXTS) for _ in range(count)]
        texts = [self._truth.texts[place] for place in places]
        request, check = getattr(self, f"_{kind}")(texts, places)
        status, reply = await self._post(session, *request)
        if status == 200:
            self.texts[kind] += count
            self.wrong += not check(reply)
        return status

    def _one(self, texts: list[str], places: list[int]) -> tuple[Any, Callable[[Any], bool]]:
        check = lambda reply: self._are_own(reply["embeddings"], places)  # noqa: E731
        return ("/native/embed", {"texts": texts}), check

    _many = _one

    def _openai(self, texts: list[str], places: list[int]) -> tuple[Any, Callable[[Any], bool]]:
        body = {"model": self._truth.model, "input": texts}
        check = lambda reply: self._are_own([reply["data"][0]["embedding"]], places)  # noqa: E731
        return ("/v1/embeddings", body), check

    def _rerank(self, texts: list[str], places: list[int]) -> tuple[Any, Callable[[Any], bool]]:
        def check(reply: Any) -> bool:
            scores = {r["index"]: r["relevance_score"] for r in reply["results"]}
            mine = [scores[place] for place in range(len(places))]
            return bool(np.allclose(mine, self._truth.scores[places], atol=1e-4))

        return ("/v2/rerank", {"query": QUERY, "documents": texts}), check

    def _are_own(self, vectors: list[list[float]], places: list[int]) -> bool:
        return bool(np.allclose(vectors, self._truth.vectors[places], atol=1e-5))

    async def _post(self, session: aiohttp.ClientSession, route: str, body: Any) -> tuple[int, Any]:
        content = body if isinstance(body, str) else json.dumps(body)
        async with session.post(self._url + route, data=content) as reply:
            answer = await reply.read()
        self.answered[route, reply.status] += 1
        return reply.status, json.loads(answer)


async def crowd(
    clients: int, work: Callable[[aiohttp.ClientSession, random.Random], Awaitable[None]]
) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await asyncio.gather(*(work(session, random.Random(i)) for i in range(clients)))


def memory(server: ServerProcess) -> float:
    """Resident MB of the server."""
    return float(psutil.Process(server.process.pid).memory_info().rss) / 1e6


async def metric(url: str, name: str) -> dict[str, float]:
    """Of every line of that name, labels → value."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as reply:
        lines = [line.rsplit(" ", 1) for line in (await reply.text()).splitlines()]
    return {
        key.removeprefix(name): float(value) for key, value in lines if key.split("{")[0] == name
    }


async def run_load(
    server: ServerProcess, truth: Truth, clients: int, requests: int
) -> dict[str, Any]:
    kinds, weights = [*MIX], [*MIX.values()]
    both = Clients(server.url, truth)
    left = iter(range(requests))

    async def caller(session: aiohttp.ClientSession, draw: random.Random) -> None:
        for _ in left:
            await both.send(session, draw.choices(kinds, weights)[0], draw)

    began = time.perf_counter()
    await crowd(clients, caller)
    seconds = time.perf_counter() - began
    statuses: Counter[int] = Counter()
    for (_, status), count in both.answered.items():
        statuses[status] += count
    pairs = both.texts["rerank"]
    alone = truth.seconds_for(both.texts.total() - pairs, pairs)
    bulk, bulk_alone = await bulk_seconds(server.url, truth), truth.seconds_for(BULK * TEXTS, 0)
    return {
        "clients": clients,
        "requests": requests,
        "answered": dict(statuses),
        "wrong": both.wrong,
        "requests_per_second": round(requests / seconds, 1),
        "texts_per_second": round(both.texts.total() / seconds, 1),
        "share_of_the_engine_s_own": round(alone / seconds, 2),
        "bulk_texts_per_second": round(BULK * TEXTS / bulk, 1),
        "bulk_share_of_the_engine_s_own": round(bulk_alone / bulk, 2),
        "ok": both.wrong == 0 and statuses == {200: requests},
    }


async def bulk_seconds(url: str, truth: Truth) -> float:
    """An indexing job: requests of 400 texts, four at a time, base64."""
    body = json.dumps({"texts": truth.texts, "encoding_format": "base64"})
    left = iter(range(BULK))

    async def caller(session: aiohttp.ClientSession, draw: random.Random) -> None:
        for _ in left:
            async with session.post(f"{url}/native/embed", data=body) as reply:
                assert reply.status == 200
                await reply.read()

    began = time.perf_counter()
    await crowd(4, caller)
    return time.perf_counter() - began


async def run_overload(server: ServerProcess, truth: Truth, limit: int) -> dict[str, Any]:
    """Twice as many callers as places, each with a request that takes a while."""
    before = memory(server)
    body = json.dumps({"texts": truth.texts[:64]})
    statuses: Counter[int] = Counter()

    async def caller(session: aiohttp.ClientSession, draw: random.Random) -> None:
        for _ in range(3):
            async with session.post(f"{server.url}/native/embed", data=body) as reply:
                await reply.read()
            statuses[reply.status] += 1
            assert reply.status == 200 or reply.headers["Retry-After"] == "1"

    await crowd(2 * limit, caller)
    # By the server's own clock: this process is busy with twice as many callers as places.
    lines = [line.split("| ", 1)[1] for line in server.log.splitlines() if '"status":429' in line]
    refusals = [json.loads(line)["ms"] for line in lines]
    return {
        "callers": 2 * limit,
        "limit": limit,
        "answered": dict(statuses),
        "refused_within_ms": {p: round(float(np.percentile(refusals, p)), 2) for p in (50, 99)},
        "memory_mb": [round(before), round(memory(server))],
        "ok": statuses.keys() == {200, 429},
    }


async def run_soak(server: ServerProcess, truth: Truth, seconds: float) -> dict[str, Any]:
    kinds, weights = [*MIX, "bad"], [*MIX.values(), 4]
    both = Clients(server.url, truth)
    ends = time.monotonic() + seconds
    samples: list[tuple[float, float]] = []

    async def caller(session: aiohttp.ClientSession, draw: random.Random) -> None:
        while time.monotonic() < ends:
            await both.send(session, draw.choices(kinds, weights)[0], draw)

    async def watch() -> None:
        began = time.monotonic()
        while time.monotonic() < ends:
            samples.append((time.monotonic() - began, memory(server)))
            print(f"\r{samples[-1][0]:5.0f} s {samples[-1][1]:6.0f} MB", end="", file=sys.stderr)
            await asyncio.sleep(min(5, seconds / 20))

    before = await metric(server.url, "bge_requests_total")
    texts_before = await metric(server.url, "bge_texts_total")
    await asyncio.gather(crowd(32, caller), watch())
    depth = await metric(server.url, "bge_queue_depth")
    after = await metric(server.url, "bge_requests_total")
    texts = await metric(server.url, "bge_texts_total")
    counted: Counter[tuple[str, int]] = Counter()
    for key, value in after.items():
        route, status = key.split('"')[1:4:2]
        if route != "/metrics" and route != "/ping":
            counted["/nowhere" if route == "unknown" else route, int(status)] += int(
                value - before.get(key, 0)
            )
    # The heap fills up first: what it may not do is grow for as long as the load lasts.
    settled = [sample for sample in samples if sample[0] >= seconds / 2]
    slope, _ = np.polyfit(*zip(*settled, strict=True), 1)
    return {
        "seconds": seconds,
        "requests": sum(both.answered.values()),
        "wrong": both.wrong,
        "memory_mb": [round(samples[0][1]), round(max(used for _, used in samples))],
        "memory_slope_mb_per_minute_in_the_second_half": round(60 * float(slope), 2),
        "queue_at_the_end": depth[""],
        "metrics_add_up": +counted == both.answered
        and texts[""] - texts_before[""] == both.texts.total(),
        "ok": both.wrong == 0
        and depth[""] == 0
        and +counted == both.answered
        and float(60 * slope) < settled[0][1] / 100,  # less than a hundredth a minute
    }


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    truth = Truth()
    env = {name: os.environ[name] for name in ("BGE_EMBED_MODEL", "BGE_RERANK_MODEL")}
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(env, Path(folder) / "log") as server,
    ):
        server.wait_for(200)
        if arguments.what == "soak":
            return {"soak": await run_soak(server, truth, arguments.seconds)}
        if arguments.what == "overload":
            return {"overload": await run_overload(server, truth, 512)}
        return {"load": await run_load(server, truth, arguments.clients, arguments.requests)}


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
