"""The HTTP server up to what it can take, and past it: `make bench-saturation`.

    closed     64 callers, each sending its next query when it has the last answer: the capacity
    offered    queries that come at random moments (Poisson) at fractions of our capacity, whether
               or not the earlier ones are answered. A query's time counts from the moment it
               was due, so that one kept waiting in the caller is not forgotten.

Ours and Infinity's server, both up, in turn, on the small shape of random weights; the callers
share the machine's cores with them. The last line printed is one JSON object.
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

from results import dated, keep, kept
from serve import Target, ours, peer
from workload import BENCH, of_length, prepare

FRACTIONS = (0.25, 0.5, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0)
PATIENCE = 20.0  # seconds, then a caller gives up
CALLERS = 64


class Callers:
    """Whoever sends queries to one server: when each was due, when it was answered, with what."""

    def __init__(self, target: Target, session: aiohttp.ClientSession) -> None:
        self._target = target
        self._session = session
        self.milliseconds: list[float] = []  # of the queries that were answered
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
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    return aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))


async def closed(target: Target, texts: list[str], seconds: float) -> dict[str, Any]:
    async with session() as http:
        callers = Callers(target, http)
        began = time.perf_counter()

        async def caller(draw: random.Random) -> None:
            while time.perf_counter() - began < seconds:
                await callers.query(draw.choice(texts), time.perf_counter())

        await asyncio.gather(*(caller(random.Random(number)) for number in range(CALLERS)))
        return callers.summary(time.perf_counter() - began)


async def offered(target: Target, texts: list[str], rate: float, seconds: float) -> dict[str, Any]:
    draw = random.Random(0)
    async with session() as http:
        callers = Callers(target, http)
        began = time.perf_counter()
        sent = []
        for moment in arrivals(draw, rate, seconds):
            await asyncio.sleep(began + moment - time.perf_counter())
            query = callers.query(draw.choice(texts), began + moment)
            sent.append(asyncio.create_task(query))
        await asyncio.gather(*sent)
        # Until the last answer: what was still waiting when no more came was not carried in time.
        return {"offered": rate, **callers.summary(time.perf_counter() - began)}


def arrivals(draw: random.Random, rate: float, seconds: float) -> Iterator[float]:
    moment = draw.expovariate(rate)
    while moment < seconds:
        yield moment
        moment += draw.expovariate(rate)


def measure(targets: list[Target], rounds: int, seconds: float) -> dict[str, Any]:
    texts = of_length(200, 12)
    capacity: dict[str, list[dict[str, Any]]] = {target.name: [] for target in targets}
    for _ in range(rounds):
        for target in targets:
            capacity[target.name].append(asyncio.run(closed(target, texts, seconds)))
            print(f"closed, {target.name}: {capacity[target.name][-1]}", flush=True)
    ours_most = statistics.median(one["per_second"] for one in capacity[targets[0].name])
    under: dict[str, list[dict[str, Any]]] = {target.name: [] for target in targets}
    for fraction in FRACTIONS:
        for target in targets:
            found = asyncio.run(offered(target, texts, round(fraction * ours_most, 1), seconds))
            under[target.name].append(found)
            print(f"offered, {target.name}: {found}", flush=True)
    return {
        target.name: dated(
            {
                "about": f"queries of 12 tokens, {seconds:g} s each, {CALLERS} callers",
                "closed": capacity[target.name],
                "offered": under[target.name],
            }
        )
        for target in targets
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of the closed loop")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--infinity", type=Path, help="infinity_emb, in an environment of its own")
    parser.add_argument("--save", action="store_true", help="keep it in benchmarks/results/")
    given = parser.parse_args()
    if given.save:
        kept()
    models = BENCH / "small"
    prepare("small", models)
    with (
        ours(models / "float32") as (target, _),
        peer(models / "hub" / "bge-m3", given.infinity) as other,
    ):
        results = measure([target, other], given.rounds, given.seconds)
    if given.save:
        keep("serving", {"small": results})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
