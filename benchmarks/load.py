"""Correctness of the HTTP server under load: `make load` and `make soak`.

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
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import psutil

from bge_worker.engine.engine import PackedEngine
from bge_worker.engine.outputs import Outputs
from bge_worker.engine.packing import round_robin
from bge_worker.serving.requests import DEFAULT_PAIR_LENGTH, MAX_LENGTH
from bge_worker.settings import Settings
from callers import Callers, Response, during, open_callers
from fakes.server_process import ServerProcess
from processes import http_server, read_metric
from results import options, report, with_date
from timing import percentiles, seconds
from workload import corpus, served_models

TEXTS = 400
BULK = 12  # requests of all texts
QUEUE = 512  # slots
QUERY = "как найти минимум функции"
MIX = {"single": 12, "batch": 4, "openai": 2, "rerank": 2}
BAD = [  # route, body, status
    ("/native/embed", '{"texts": []}', "422"),
    ("/native/embed", '{"texts": ["a"], "max_length": 1}', "422"),
    ("/v1/embeddings", '{"input": "a", "model": "another"}', "404"),
    ("/rerank", '{"query": "a"}', "422"),
    ("/embed", "not JSON", "422"),
    ("/nowhere", "{}", "404"),
]


class Reference:
    """Texts with the engine's own vectors and scores."""

    def __init__(self) -> None:
        self._engine = PackedEngine(Settings.from_env(served_models()))
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
        embedding = sum(seconds(partial(self.embed, self.texts)) for _ in range(4)) / 4
        scoring = sum(seconds(partial(self.score, self.texts[:32])) for _ in range(4)) / 4
        return texts * embedding / TEXTS + pairs * scoring / 32


class MixedRequests:
    """Send requests of random kinds, by their weights in `mix`, and count wrong replies."""

    def __init__(self, callers: Callers, reference: Reference, mix: dict[str, int]) -> None:
        self._callers = callers
        self._reference = reference
        self._mix = mix
        self._rng = random.Random(0)
        self.texts: Counter[str] = Counter()  # computed, by kind of request
        self.wrong = 0

    async def send(self) -> None:
        rng = self._rng
        (kind,) = rng.choices([*self._mix], [*self._mix.values()])
        if kind == "bad":
            route, body, status = rng.choice(BAD)
            response = await self._callers.post(route, body)
            self.wrong += response.status != status
            return
        count = 1 if kind in ("single", "openai") else rng.randint(2, 16)
        indices = [rng.randrange(TEXTS) for _ in range(count)]
        route, fields = self._request(kind, [self._reference.texts[index] for index in indices])
        response = await self._callers.post(route, json.dumps(fields))
        if response.status == "200":
            self.texts[kind] += count
            self.wrong += not self._is_correct(kind, response, indices)

    def _request(self, kind: str, texts: list[str]) -> tuple[str, dict[str, Any]]:
        if kind == "rerank":
            return "/v2/rerank", {"query": QUERY, "documents": texts}
        if kind == "openai":
            return "/v1/embeddings", {"model": self._reference.model, "input": texts}
        return "/native/embed", {"texts": texts}

    def _is_correct(self, kind: str, response: Response, indices: list[int]) -> bool:
        reply = json.loads(response.content)
        if kind == "rerank":
            ranked = sorted(reply["results"], key=lambda result: result["index"])
            scores = [result["relevance_score"] for result in ranked]
            return bool(np.allclose(scores, self._reference.scores[indices], atol=1e-4))
        if kind == "openai":
            vectors = [item["embedding"] for item in reply["data"]]
        else:
            vectors = reply["embeddings"]
        return bool(np.allclose(vectors, self._reference.vectors[indices], atol=1e-5))


async def measure_load(
    server: ServerProcess, reference: Reference, clients: int, count: int
) -> dict[str, Any]:
    async with open_callers(server.url) as callers:
        requests = MixedRequests(callers, reference, MIX)
        elapsed = await callers.run(clients, (requests.send() for _ in range(count)))
    pairs = requests.texts["rerank"]
    engine_seconds = reference.seconds_for(requests.texts.total() - pairs, pairs)
    bulk = await bulk_seconds(server.url, reference)
    return {
        "clients": clients,
        "requests": count,
        "answered": callers.statuses(),
        "wrong": requests.wrong,
        "requests_per_second": round(count / elapsed, 1),
        "texts_per_second": round(requests.texts.total() / elapsed, 1),
        "share_of_the_engine_s_own": round(engine_seconds / elapsed, 2),
        "bulk_texts_per_second": round(BULK * TEXTS / bulk, 1),
        "bulk_share_of_the_engine_s_own": round(reference.seconds_for(BULK * TEXTS, 0) / bulk, 2),
        "ok": requests.wrong == 0 and callers.statuses() == {"200": count},
    }


async def bulk_seconds(url: str, reference: Reference) -> float:
    """Return the seconds of an indexing job: requests of 400 texts, four at a time, in base64."""
    body = json.dumps({"texts": reference.texts, "encoding_format": "base64"})
    async with open_callers(url) as callers:
        elapsed = await callers.run(4, (callers.post("/native/embed", body) for _ in range(BULK)))
    assert callers.statuses() == {"200": BULK}
    return elapsed


async def measure_overload(server: ServerProcess, reference: Reference) -> dict[str, Any]:
    """Send long requests from twice as many callers as the queue has slots."""
    before = memory_mb(server)
    body = json.dumps({"texts": reference.texts[:64]})
    async with open_callers(server.url) as callers:
        clients = 2 * QUEUE
        await callers.run(clients, (send_three(callers, body) for _ in range(clients)))
    # By the server's own clock, since this process is busy with its callers.
    lines = [json.loads(line) for line in server.log.splitlines() if '"status": 429' in line]
    return {
        "callers": clients,
        "limit": QUEUE,
        "answered": callers.statuses(),
        "refused_within_ms": percentiles([line["ms"] for line in lines], 2),
        "memory_mb": [round(before), round(memory_mb(server))],
        "ok": callers.statuses().keys() == {"200", "429"},
    }


async def send_three(callers: Callers, body: str) -> None:
    for _ in range(3):
        response = await callers.post("/native/embed", body)
        assert response.status == "200" or response.headers.get("Retry-After") == "1"


async def measure_soak(
    server: ServerProcess, reference: Reference, duration: float
) -> dict[str, Any]:
    requests_before = counted_requests(server.url)
    texts_before = read_metric(server.url, "bge_texts_total")[""]
    async with open_callers(server.url) as callers:
        requests = MixedRequests(callers, reference, MIX | {"bad": 4})
        load = callers.run(32, (requests.send() for _ in during(duration)))
        samples, _ = await asyncio.gather(watch_memory(server, duration), load)
    # The heap fills up first; it must not keep growing.
    times, megabytes = zip(*samples[len(samples) // 2 :], strict=True)
    slope = 60 * float(np.polyfit(times, megabytes, 1)[0])
    depth = read_metric(server.url, "bge_queue_depth")[""]
    texts = read_metric(server.url, "bge_texts_total")[""] - texts_before
    metrics_add_up = (
        counted_requests(server.url) - requests_before == callers.responses
        and texts == requests.texts.total()
    )
    return {
        "seconds": duration,
        "requests": callers.responses.total(),
        "wrong": requests.wrong,
        "memory_mb": [round(samples[0][1]), round(max(used for _, used in samples))],
        "memory_slope_mb_per_minute_in_the_second_half": round(slope, 2),
        "queue_at_the_end": depth,
        "metrics_add_up": metrics_add_up,
        "ok": requests.wrong == 0
        and depth == 0
        and metrics_add_up
        and slope < megabytes[0] / 100,  # less than 1% per minute
    }


def counted_requests(url: str) -> Counter[tuple[str, str]]:
    """Return the requests by route and status, as /metrics counts them."""
    counts: Counter[tuple[str, str]] = Counter()
    for labels, value in read_metric(url, "bge_requests_total").items():
        route, status = labels.split('"')[1:4:2]
        if route not in ("/metrics", "/ping"):
            counts["/nowhere" if route == "unknown" else route, status] += int(value)
    return counts


async def watch_memory(server: ServerProcess, duration: float) -> list[tuple[float, float]]:
    """Return the seconds since the start and the memory in MB, at least twenty times."""
    samples: list[tuple[float, float]] = []
    start = time.monotonic()
    while time.monotonic() < start + duration:
        samples.append((time.monotonic() - start, memory_mb(server)))
        print(f"\r{samples[-1][0]:5.0f} s {samples[-1][1]:6.0f} MB", end="", file=sys.stderr)
        await asyncio.sleep(min(5, duration / 20))
    return samples


def memory_mb(server: ServerProcess) -> float:
    """Return the server's resident memory."""
    return float(psutil.Process(server.process.pid).memory_info().rss) / 1e6


def measure(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    reference = Reference()
    for name in args.what:
        with http_server(served_models() | {"BGE_LOG_FORMAT": "json"}) as server:
            if name == "load":
                run = measure_load(server, reference, args.clients, args.requests)
            elif name == "overload":
                run = measure_overload(server, reference)
            else:
                run = measure_soak(server, reference, args.seconds)
            yield "load", {name: with_date(asyncio.run(run))}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("what", nargs="+", choices=("load", "overload", "soak"))
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=600)
    args = parser.parse_args()
    results = report(measure(args), save=args.save)
    sys.exit(not all(entry["ok"] for entry in results["load"].values()))


if __name__ == "__main__":
    main()
