"""Engines with faults, and the requests that cause them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
    """Slow, with room for one text in a micro-batch. A text names the fault that it causes."""

    def __init__(self) -> None:
        super().__init__(max_batch_tokens=40)
        self.fault = self.break_down

    def encode_pairs(
        self, queries: list[str], documents: Sequence[str], max_length: int
    ) -> list[Encoded]:
        return [
            EncodedText([0] * min(len(text), max_length), len(text), text) for text in documents
        ]

    def break_down(self, texts: list[str]) -> None:
        time.sleep(BATCH_SECONDS)
        self.recomputed += "overflow" in texts
        if "fail" in texts:
            raise RuntimeError
        if "large" in texts and len(texts) > 1:
            raise OutOfMemoryError("does not fit")


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
    reranking("x"),
]


@contextmanager
def load(urls: dict[str, str]) -> Iterator[None]:
    """Send requests all the time: more to the faulty server than its queue holds."""
    stopped = threading.Event()
    targets: list[Callable[[], None]] = [lambda: send_texts(urls["healthy"], stopped)]
    targets += [lambda: send_faults(urls["faulty"], stopped) for _ in range(MAX_QUEUE + 2)]
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def send_texts(url: str, stopped: threading.Event) -> None:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        while not stopped.wait(0.1):
            client.post("/v1/embeddings", json={"input": TEXTS})
            client.post("/native/rerank", json=reranking(*TEXTS))


def send_faults(url: str, stopped: threading.Event) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        while not stopped.wait(0.1):
            for body in FAULTS:
                client.post("/native/rerank", json=body)
