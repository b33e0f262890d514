"""An engine whose results reveal any mix-up: a text's result is its own length."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from bge_worker.engine.config import ModelInfo, Role
from bge_worker.engine.engine import FinishedBatch, RunningBatch
from bge_worker.engine.outputs import Outputs, Result
from bge_worker.engine.runtime import Runtime
from bge_worker.engine.tokenizer import Encoded, Tokenizer
from bge_worker.serving.limits import Limits
from bge_worker.serving.requests import InferenceRequest
from bge_worker.settings import Settings

SOON = 10.0  # seconds: waited for in full only if something is broken
MODEL = ModelInfo("fake/model", None, "f" * 16, 4, 1000, 8192)
ALL_VECTORS = Outputs.DENSE | Outputs.SPARSE | Outputs.COLBERT


class NoLimits(Limits):
    def __init__(self) -> None:
        super().__init__({}, Settings())

    def check(self, request: InferenceRequest, encoded: Sequence[Encoded]) -> None:
        pass


@dataclass(slots=True)
class EncodedText(Encoded):
    text: str


@dataclass(frozen=True)
class FakeRunning:
    """A micro-batch of a device: `fault` is raised by `wait`, `fault_of_results` by `results`."""

    engine: FakeDevice
    sources: list[str]
    is_asynchronous = True

    def wait(self) -> None:
        self.engine.steps.append(("wait", self.sources))
        self.engine.entered.release()
        assert self.engine.gate.wait(SOON)
        self.engine.fault(self.sources)

    def results(self) -> Sequence[Result]:
        self.engine.steps.append(("results", self.sources))
        self.engine.fault(self.sources)  # as if nobody had waited
        self.engine.fault_of_results(self.sources)
        return [float(len(source)) for source in self.sources]


class FakeEngine:
    """One token per character. A test holds `run` with `gate` and makes it raise with `fault`."""

    def __init__(self, max_batch_tokens: int = 100) -> None:
        self.runtime = Runtime("fake", "none", "none", "none", "none", max_batch_tokens)
        self.models: dict[Role, ModelInfo] = {"rerank": MODEL}
        self.recomputed = 0
        self.batches: list[list[str]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.fault: Callable[[list[str]], None] = lambda texts: None

    def encode_texts(self, texts: Sequence[str | Sequence[int]], max_length: int) -> list[Encoded]:
        return [EncodedText([0] * len(text), len(text), str(text)) for text in texts]

    def encode_pairs(
        self, queries: list[str], documents: Sequence[str], max_length: int
    ) -> list[Encoded]:
        return self.encode_texts(documents, max_length)

    def tokenizer(self, role: Role) -> Tokenizer:
        raise NotImplementedError

    def launch(self, outputs: Outputs, texts: Sequence[Encoded]) -> RunningBatch:
        return FinishedBatch(self.run(outputs, texts))

    def run(self, outputs: Outputs, texts: Sequence[Encoded]) -> Sequence[Result]:
        sources = [text.text for text in cast("Sequence[EncodedText]", texts)]
        self.batches.append(sources)
        self.entered.release()
        assert self.gate.wait(SOON)
        self.fault(sources)
        return [float(len(text.ids)) for text in texts]


class FakeDevice(FakeEngine):
    """The same, computing beside the host, as a GPU does. `steps` are what the host did."""

    def __init__(self, max_batch_tokens: int = 100) -> None:
        super().__init__(max_batch_tokens)
        self.steps: list[tuple[str, list[str]]] = []
        self.fault_of_results: Callable[[list[str]], None] = lambda texts: None

    def launch(self, outputs: Outputs, texts: Sequence[Encoded]) -> RunningBatch:
        sources = [text.text for text in cast("Sequence[EncodedText]", texts)]
        self.steps.append(("launch", sources))
        return FakeRunning(self, sources)
