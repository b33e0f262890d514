"""Engines with faults, and the requests that cause them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from bge_worker.engine.tokenizer import Encoded
from bge_worker.errors import DeviceError, OutOfMemoryError
from fakes.engine import EncodedText, FakeEngine
from fakes.serving import KEY, TEXTS

MAX_QUEUE = 4
BATCH_SECONDS = 0.5


class FaultyEngine(FakeEngine):
    """A text names the fault that it causes."""

    def __init__(self) -> None:
        super().__init__()
        self.fault = self.break_down

    def encode_pairs(
        self, queries: list[str], documents: Sequence[str], max_length: int
    ) -> list[Encoded]:
        lengths = [min(len(text), max_length) for text in documents]
        return [
            EncodedText([0] * length, len(text), text)
            for length, text in zip(lengths, documents, strict=True)
        ]

    def break_down(self, texts: list[str]) -> None:
        self.recomputed += "overflow" in texts
        if "fail" in texts:
            raise RuntimeError
        if "large" in texts and len(texts) > 1:
            raise OutOfMemoryError("does not fit")


class SlowEngine(FakeEngine):
    """Computes one text at a time."""

    def __init__(self) -> None:
        super().__init__(max_batch_tokens=1)
        self.fault = self.delay

    def delay(self, texts: list[str]) -> None:
        time.sleep(BATCH_SECONDS)


class BrokenEngine(FakeEngine):
    """Its device fails at the first text."""

    def __init__(self) -> None:
        super().__init__()
        self.fault = self.break_down

    def break_down(self, texts: list[str]) -> None:
        raise DeviceError


def reranking(*documents: str, max_length: int = 1024) -> dict[str, Any]:
    return {"query": "q", "documents": documents, "max_length": max_length}


FAULTS = [
    reranking("fail"),
    reranking("large", "texts"),
    reranking("overflow"),
    reranking("longer than seventeen characters", max_length=17),
]


@contextmanager
def load(urls: dict[str, str]) -> Iterator[None]:
    """Send requests all the time: to the slow server more than its queue holds."""
    stopped = threading.Event()
    loads = [(urls["healthy"], [reranking(*TEXTS)]), (urls["faulty"], FAULTS)]
    loads += [(urls["slow"], [reranking("a slow text")])] * (MAX_QUEUE + 1)
    threads = [threading.Thread(target=send, args=(*of_server, stopped)) for of_server in loads]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def send(url: str, bodies: Sequence[dict[str, Any]], stopped: threading.Event) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        while not stopped.wait(0.1):
            for body in bodies:
                client.post("/native/rerank", json=body)
