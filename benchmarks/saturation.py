"""The HTTP server up to and beyond its capacity: `make bench-saturation`.

    closed     closed loop: 64 callers, each sends its next query after a reply; the capacity
    offered    open loop: queries arrive at random (Poisson) at fractions of our capacity, whatever
               is still unanswered. A query's time counts from its arrival, so that waiting in the
               caller is included.

Our server and Infinity's run side by side and are measured in turn, with the small shape of random
weights; the callers share their cores. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from results import read_results, save_results, with_date
from serve import Target, own_server, peer_server
from workload import BENCH, prepare, texts_of_length

FRACTIONS = (0.25, 0.5, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0)
TIMEOUT = 20.0  # seconds per query
CALLERS = 64


class Callers:
    """Send queries to one server and record latencies and statuses."""

    def __init__(self, target: Target, session: aiohttp.ClientSession) -> None:
        self._target = target
        self._session = session
        self.milliseconds: list[float] = []  # of answered queries
        self.statuses: Counter[str] = Counter()

    async def query(self, text: str, due: float) -> None:
        body = self._target.body | {"input": [text]}
        try:
            async with self._session.post(self._target.url, json=body) as reply:
                await reply.read()
                status = str(reply.status)
        except (aiohttp.ClientError, TimeoutError) as error:
            status = type(error).__name__
        self.statuses[status] += 1
        if status == "200":
            self.milliseconds.append(1e3 * (time.perf_counter() - due))

    def summary(self, seconds: float) -> dict[str, Any]:
        p50, p99 = np.percentile(self.milliseconds or [float("nan")], (50, 99))
        return {
            "per_second": round(len(self.milliseconds) / seconds, 1),
            "p50_ms": round(float(p50), 1),
            "p99_ms": round(float(p99), 1),
            "statuses": dict(self.statuses),
        }


def session() -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    return aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))


async def measure_closed(target: Target, texts: list[str], seconds: float) -> dict[str, Any]:
    async with session() as http:
        callers = Callers(target, http)
        start = time.perf_counter()

        async def caller(rng: random.Random) -> None:
            while time.perf_counter() - start < seconds:
                await callers.query(rng.choice(texts), time.perf_counter())

        await asyncio.gather(*(caller(random.Random(number)) for number in range(CALLERS)))
        return callers.summary(time.perf_counter() - start)


async def measure_offered(
    target: Target, texts: list[str], rate: float, seconds: float
) -> dict[str, Any]:
    rng = random.Random(0)
    async with session() as http:
        callers = Callers(target, http)
        start = time.perf_counter()
        sent = []
        for offset in arrivals(rng, rate, seconds):
            await asyncio.sleep(start + offset - time.perf_counter())
            query = callers.query(rng.choice(texts), start + offset)
            sent.append(asyncio.create_task(query))
        await asyncio.gather(*sent)
        # Until the last reply: answers after the last arrival must not raise the rate.
        return {"offered": rate, **callers.summary(time.perf_counter() - start)}


def arrivals(rng: random.Random, rate: float, seconds: float) -> Iterator[float]:
    offset = rng.expovariate(rate)
    while offset < seconds:
        yield offset
        offset += rng.expovariate(rate)


def measure(targets: list[Target], rounds: int, seconds: float) -> dict[str, Any]:
    texts = texts_of_length(200, 12)
    capacity: dict[str, list[dict[str, Any]]] = {target.name: [] for target in targets}
    for _ in range(rounds):
        for target in targets:
            capacity[target.name].append(asyncio.run(measure_closed(target, texts, seconds)))
            print(f"closed, {target.name}: {capacity[target.name][-1]}", flush=True)
    own_capacity = statistics.median(result["per_second"] for result in capacity[targets[0].name])
    loaded: dict[str, list[dict[str, Any]]] = {target.name: [] for target in targets}
    for fraction in FRACTIONS:
        for target in targets:
            result = asyncio.run(
                measure_offered(target, texts, round(fraction * own_capacity, 1), seconds)
            )
            loaded[target.name].append(result)
            print(f"offered, {target.name}: {result}", flush=True)
    return {
        target.name: with_date(
            {
                "about": f"queries of 12 tokens, {seconds:g} s each, {CALLERS} callers",
                "closed": capacity[target.name],
                "offered": loaded[target.name],
            }
        )
        for target in targets
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the closed loop")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each measurement")
    parser.add_argument("--infinity", type=Path, help="infinity_emb in its own environment")
    parser.add_argument("--save", action="store_true", help="save to benchmarks/results/")
    args = parser.parse_args()
    if args.save:
        read_results()
    models = BENCH / "small"
    prepare("small", models)
    with (
        own_server(models / "float32") as (target, _),
        peer_server(models / "hub" / "bge-m3", args.infinity) as peer,
    ):
        results = measure([target, peer], args.rounds, args.seconds)
    if args.save:
        save_results("serving", {"small": results})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
