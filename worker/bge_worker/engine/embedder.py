"""The embedding model as a library: texts in, vectors out, in one process."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from ..errors import StartError, ValidationError, WorkerError
from ..settings import AttentionName, Device, Dtype, Settings
from .config import ModelInfo
from .engine import PackedEngine
from .outputs import Embedding, Outputs, Result
from .packing import round_robin
from .pipeline import Pipeline
from .runtime import Runtime
from .texts import MAX_LENGTH, check_texts
from .tokenizer import Encoded

VECTORS = Outputs.DENSE | Outputs.SPARSE | Outputs.COLBERT


class Embedder:
    """bge-m3 on one device. Thread-safe: one call at a time has the device.

    `runtime` says where it runs, `info` which model it is.
    """

    def __init__(self, engine: PackedEngine) -> None:
        """`load` makes the engine."""
        self.info: ModelInfo = engine.models["embed"]
        self.runtime: Runtime = engine.runtime
        self._engine = engine
        self._device = threading.Lock()

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        device: Device = "auto",
        dtype: Dtype = "auto",
        attention: AttentionName = "auto",
        max_batch_tokens: int | None = None,
    ) -> Embedder:
        """Load the embedding model of a runtime folder and warm the device up.

        Reads no environment variable. `max_batch_tokens` of None depends on the device.

        Raises StartError: the folder holds no embedding model, an option is not valid, or the
            device does not run the model.
        """
        _check_choice("device", device, get_args(Device))
        _check_choice("dtype", dtype, get_args(Dtype))
        _check_choice("attention", attention, get_args(AttentionName))
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise StartError(f"`max_batch_tokens` must be at least 1. Given: {max_batch_tokens}")
        settings = Settings(
            embed_model=Path(folder),
            rerank_model=None,
            device=device,
            dtype=dtype,
            attention=attention,
            max_batch_tokens=max_batch_tokens,
        )
        return cls(PackedEngine(settings))

    def tokenize(self, texts: Sequence[str], *, max_length: int = MAX_LENGTH) -> list[Encoded]:
        """Return the token ids of each text, truncated to `max_length`. Needs no device.

        Raises ValidationError: a text is blank or not valid, or `max_length` is below 3.
        """
        check_texts(texts, max_length)
        return self._engine.encode_texts(texts, max_length)

    def embed(
        self,
        texts: Sequence[str],
        *,
        dense: bool = True,
        sparse: bool = False,
        colbert: bool = False,
        max_length: int = MAX_LENGTH,
    ) -> list[Embedding]:
        """Return the vectors of each text, in order.

        Raises:
            ValidationError: no output is requested, or as `tokenize`.
            OutOfMemoryError, InferenceError: a text cannot be computed, the first one.
            DeviceError: the device has failed, and the process must be replaced.
        """
        outputs = Outputs.DENSE if dense else Outputs(0)
        if sparse:
            outputs |= Outputs.SPARSE
        if colbert:
            outputs |= Outputs.COLBERT
        if not outputs:
            raise ValidationError(
                "one of `dense`, `sparse`, `colbert` must be true. Given: all false"
            )
        results = self.embed_encoded(self.tokenize(texts, max_length=max_length), outputs)
        return [_embedding(result) for result in results]

    def embed_encoded(
        self, encoded: Sequence[Encoded], outputs: Outputs
    ) -> list[Embedding | WorkerError]:
        """Return the vectors of each text, in order, or the error of one that cannot be computed.

        Cuts micro-batches of at most `runtime.max_batch_tokens` tokens, longest texts first.

        Raises:
            ValidationError: `outputs` holds no vectors, or scores.
            DeviceError: the device has failed, and the process must be replaced.
        """
        if not outputs & VECTORS or Outputs.RELEVANCE in outputs:
            raise ValidationError("`outputs` must hold DENSE, SPARSE or COLBERT, and no RELEVANCE")
        order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index].ids))
        results: dict[int, Embedding | WorkerError] = {}
        items = [_Item(encoded[index], index, results) for index in order]
        with self._device:
            pipeline = Pipeline(self._engine)
            for batch in cut(items, self.runtime.max_batch_tokens):
                pipeline.run(outputs, batch)
            pipeline.finish()
        return [results[index] for index in range(len(encoded))]


@dataclass(frozen=True)
class _Item:
    """A text of a call, and where its result goes."""

    text: Encoded
    index: int
    results: dict[int, Embedding | WorkerError]
    is_over = False

    @property
    def position(self) -> tuple[str, int]:
        return "texts", self.index

    def add_result(self, result: Result) -> None:
        self.results[self.index] = cast(Embedding, result)

    def fail(self, error: WorkerError) -> None:
        self.results[self.index] = error


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise StartError(f"`{name}` must be one of {', '.join(choices)}. Given: {value!r}")


def cut(items: Sequence[_Item], budget: int) -> Iterator[Sequence[_Item]]:
    """Cut micro-batches of at most `budget` tokens, or of one text that has more."""
    start = 0
    while start < len(items):
        lengths = (len(items[index].text.ids) for index in range(start, len(items)))
        (count,) = round_robin([lengths], budget)
        yield items[start : start + count]
        start += count


def _embedding(result: Embedding | WorkerError) -> Embedding:
    if isinstance(result, WorkerError):
        raise result
    return result
