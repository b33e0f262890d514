"""An engine whose results reveal any mix-up: a text's result is its own length."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from bge_worker.engine.checkpoint import Role
from bge_worker.engine.engine import ModelInfo, Result, Runtime
from bge_worker.engine.tokenizer import Encoded
from bge_worker.serving.requests import Outputs, Work

SOON = 10.0  # seconds: never waited for unless something is broken


class FakeEngine:
    """One token a character. `run` may be held, and may be told to fail."""

    def __init__(self, max_batch_tokens: int = 100) -> None:
        self.runtime = Runtime("fake", "none", "none", "none", "none", max_batch_tokens)
        model = ModelInfo("fake", None, "f" * 16, 4, 1000, 8192)
        self.models: dict[Role, ModelInfo] = {"rerank": model}
        self.recomputed = 0
        self.batches: list[list[str]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.fault: Callable[[list[str]], None] = lambda texts: None

    def encode(self, work: Work, start: int, end: int) -> list[Encoded]:
        return [Encoded([0] * len(t), len(t), str(t), 9999) for t in work.texts[start:end]]

    def run(self, outputs: Outputs, texts: Sequence[Encoded]) -> Sequence[Result]:
        sources = [str(text.source) for text in texts]
        self.batches.append(sources)
        self.entered.release()
        assert self.gate.wait(SOON)
        self.fault(sources)
        return [float(len(text.ids)) for text in texts]
