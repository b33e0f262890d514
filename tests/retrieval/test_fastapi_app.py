"""The example application under load."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import time
from types import ModuleType
from typing import Any

import httpx

from bge_client import Client
from bge_retrieval import Store, index
from commands import EXAMPLES
from fakes.async_models import RememberedClient

CALLERS = 50
MAX_BUSY_SECONDS = 0.25  # 50 callers in one turn; usually a fifth


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class LoopMeter:
    """Measures how long the event loop works between two turns of a task that only ticks.

    Processor time of its thread, so that other processes and threads do not count.
    """

    async def __aenter__(self) -> LoopMeter:
        self.longest = 0.0
        gc.disable()  # a full collection of the tests' heap takes longer than any search
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        gc.enable()

    async def _tick(self) -> None:
        while True:
            start = time.thread_time()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.thread_time() - start)


async def first_hits(app: Any, texts: list[str]) -> tuple[list[tuple[str, Any]], float]:
    """Search for each text from 50 callers at once. Return pairs of text and first hit, and the
    longest turn of the event loop."""
    transport = httpx.ASGITransport(app=app)
    pairs: list[tuple[str, Any]] = []

    async def call(caller: int) -> None:
        for text in texts[caller::CALLERS]:
            response = await client.get("/search", params={"query": text, "limit": 5})
            pairs.append((text, response.raise_for_status().json()[0]))

    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://app", timeout=60) as client,
        LoopMeter() as meter,
    ):
        await asyncio.gather(*map(call, range(CALLERS)))
    return pairs, meter.longest


def test_concurrent_callers_get_their_own_answers_and_leave_the_loop_responsive(
    qdrant: Store, qdrant_url: str, worker: Client, passages: list[dict[str, Any]]
) -> None:
    index(qdrant, worker, "course", passages)
    texts = {passage["text"]: passage["_id"] for passage in passages}
    client = RememberedClient(worker, [*texts])
    app = example("fastapi_app").create_app(client, qdrant_url, "course")
    pairs, busy_seconds = asyncio.run(first_hits(app, [*texts]))
    print(f"the event loop was busy for {busy_seconds * 1e3:.0f} ms at most")
    assert len(pairs) == len(texts)
    for text, hit in pairs:
        assert hit == {"id": texts[text], "score": 1.0, "text": text}
    assert busy_seconds < MAX_BUSY_SECONDS
