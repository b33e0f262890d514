"""Encoded texts → vectors or scores, on one device.

`PackedEngine` runs our own forward pass. `reference.ReferenceEngine` has the same interface and
runs FlagEmbedding.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, Protocol

import torch
from tokenizers import Tokenizer as FastTokenizer

from ..errors import OutOfMemoryError, StartError
from ..settings import Settings
from .attention import SDPA
from .attention_choice import choose_attention
from .checkpoint import Network, load
from .config import Config, ModelInfo, Role
from .graphs import GRAPH_OUTPUTS, Graphs, capture_graphs
from .heads import HostCopy, embeddings_of_texts, logits_of_pairs
from .manifest import INT8, TOKENIZER, Manifest
from .model import packs_weights
from .outputs import Outputs, Result
from .packing import pack
from .runtime import (
    Runtime,
    check_int8,
    choose_device,
    choose_dtype,
    device_errors_translated,
    make_runtime,
    model_info,
    runtime_folders,
)
from .tokenizer import Encoded, Tokenizer, open_tokenizer

log = logging.getLogger(__name__)

WARM_UP_LENGTHS = (16, 64, 512, 2048, 8192)  # tokens: a library's kernels differ by size
WARM_UP_OUTPUTS: dict[Role, tuple[Outputs, ...]] = {
    "embed": (Outputs.DENSE, Outputs.DENSE | Outputs.SPARSE | Outputs.COLBERT),
    "rerank": (Outputs.RELEVANCE,),
}


class Engine(Protocol):
    """What `serving` needs of an engine.

    The `encode_…` methods are thread-safe and may run beside the others, which one thread calls.
    """

    runtime: Runtime
    models: dict[Role, ModelInfo]
    recomputed: int  # texts recomputed in fp32 since the start

    def encode_texts(self, texts: Sequence[str | Sequence[int]], max_length: int) -> list[Encoded]:
        """Tokenise texts, or frame token ids, for the embedding model."""

    def encode_pairs(
        self, queries: list[str], documents: Sequence[str], max_length: int
    ) -> list[Encoded]:
        """Tokenise pairs for the rerank model. There is one query, or one for each document."""

    def tokenizer(self, role: Role) -> Tokenizer:
        """Return the tokenizer of a loaded model."""

    def launch(self, outputs: Outputs, texts: Sequence[Encoded]) -> RunningBatch:
        """Start a micro-batch.

        Raises OutOfMemoryError: the texts together do not fit the device.
        """


class RunningBatch(Protocol):
    """A micro-batch that was launched."""

    @property
    def is_asynchronous(self) -> bool:
        """Whether the device may still compute it. Otherwise its results are there."""

    def wait(self) -> None:
        """Wait for the device. Raises OutOfMemoryError or DeviceError."""

    def results(self) -> Sequence[Result]:
        """Wait, and return one result for each text, in order, every number of it finite.

        Raises:
            OutOfMemoryError: the texts, or one that must be recomputed, do not fit the device.
            FloatingPointError: a result is not finite, not even in fp32.
        """


@dataclass(frozen=True)
class FinishedBatch:
    """Results of an engine that computes them when it is called."""

    finished: Sequence[Result]
    is_asynchronous = False

    def wait(self) -> None:
        pass

    def results(self) -> Sequence[Result]:
        return self.finished


class NotFiniteError(FloatingPointError):
    """A result holds NaN or infinity and must not be sent."""


class _Model(NamedTuple):
    network: Network
    tokenizer: Tokenizer
    manifest: Manifest


class PackedEngine:
    """Our own forward pass over packed texts."""

    def __init__(self, settings: Settings) -> None:
        """Load the models and warm the device up.

        Raises StartError: a folder or the device is not what the settings require.
        """
        self.recomputed = 0
        self._device = choose_device(settings)
        folders = runtime_folders(settings, "fused")
        is_int8 = check_int8(settings, self._device, folders)
        self._dtype = choose_dtype(settings, self._device)
        self._has_padding = packs_weights(self._device, self._dtype)
        began = perf_counter()
        self._models = self._load_all(folders)
        loaded = perf_counter()
        head_shapes = [model.manifest.config.head_shape for model in self._models.values()]
        self._attention = choose_attention(
            settings.attention, self._device, self._dtype, head_shapes
        )
        checked = perf_counter()
        self.models = {role: model_info(model.manifest) for role, model in self._models.items()}
        name, reason = self._attention.name, self._attention.reason
        dtype = INT8 if is_int8 else str(self._dtype).removeprefix("torch.")
        self.runtime = make_runtime(settings, self._device, dtype, name, reason)
        self._graphs: dict[Role, Graphs] = {}
        self._warm_up()
        warm = perf_counter()
        if settings.cuda_graphs and self._device.type == "cuda" and self._attention.is_capturable:
            self._graphs = self._capture_graphs()
        log.info(
            "models loaded in %.2f s, attention (%s: %s) checked in %.2f s, warmed up in %.2f s, "
            "graphs captured in %.2f s",
            *(loaded - began, name, reason, checked - loaded, warm - checked),
            perf_counter() - warm,
        )

    def _load_all(self, folders: Mapping[Role, tuple[Path, Manifest]]) -> dict[Role, _Model]:
        """Load both models and their tokenizers at once, so that reading overlaps unpacking."""
        with ThreadPoolExecutor() as pool:
            tokenizers = {}  # by content: both models have the same tokenizer.json
            for folder, manifest in folders.values():
                sha256 = manifest.files[TOKENIZER].sha256
                if sha256 not in tokenizers:  # opened first: it takes longest
                    tokenizers[sha256] = pool.submit(open_tokenizer, folder / TOKENIZER)
            networks = {
                role: pool.submit(load, folder, manifest, self._device, self._dtype)
                for role, (folder, manifest) in folders.items()
            }
        models = {}
        for role, (_, manifest) in folders.items():
            fast: FastTokenizer = tokenizers[manifest.files[TOKENIZER].sha256].result()
            tokenizer = Tokenizer(fast, manifest.config)
            models[role] = _Model(networks[role].result(), tokenizer, manifest)
        return models

    @property
    def has_graphs(self) -> bool:
        return any(graphs for graphs in self._graphs.values())

    def _capture_graphs(self) -> dict[Role, Graphs]:
        return {
            role: capture_graphs(
                *(model.network, GRAPH_OUTPUTS[role], model.manifest.config),
                *(self._attention, self._dtype),
            )
            for role, model in self._models.items()
        }

    def _warm_up(self) -> None:
        """Load a GPU's kernels and reserve the memory of a full micro-batch.

        A CPU needs no warm-up: only the pages of the weights, which the first request loads as
        fast.

        Raises StartError: the models do not run on this device.
        """
        if self._device.type != "cuda":
            return
        lengths: tuple[int, ...] = WARM_UP_LENGTHS
        for role, model in self._models.items():
            try:
                for outputs in WARM_UP_OUTPUTS[role]:
                    for length in lengths:
                        self.run(outputs, [dummy_text(length, model.manifest.config)])
                    text = dummy_text(512, model.manifest.config)
                    count = self.runtime.max_batch_tokens // len(text.ids)
                    self.run(outputs, [text] * max(1, count))
                    lengths = (16,)  # the encoder's kernels are loaded: only heads differ
            except (RuntimeError, FloatingPointError, OutOfMemoryError) as error:
                raise StartError(
                    f"`{model.manifest.model}` does not run on {self.runtime.device}: {error}"
                ) from error

    def encode_texts(self, texts: Sequence[str | Sequence[int]], max_length: int) -> list[Encoded]:
        return self._models["embed"].tokenizer.encode_texts(texts, max_length)

    def encode_pairs(
        self, queries: list[str], documents: Sequence[str], max_length: int
    ) -> list[Encoded]:
        return self._models["rerank"].tokenizer.encode_pairs(queries, documents, max_length)

    def tokenizer(self, role: Role) -> Tokenizer:
        return self._models[role].tokenizer

    def run(self, outputs: Outputs, texts: Sequence[Encoded]) -> Sequence[Result]:
        """Launch a micro-batch and return its results."""
        return self.launch(outputs, texts).results()

    def launch(self, outputs: Outputs, texts: Sequence[Encoded]) -> PackedBatch:
        with device_errors_translated():
            return self._forward(outputs, texts, self._dtype)

    def finish(self, batch: PackedBatch) -> Sequence[Result]:
        """See `PackedBatch.results`."""
        with device_errors_translated():
            return [
                result if result is not None else self._recompute_in_fp32(batch.outputs, text)
                for result, text in zip(batch.computed(), batch.texts, strict=True)
            ]

    def _recompute_in_fp32(self, outputs: Outputs, text: Encoded) -> Result:
        """bge-m3 overflows in fp16 on some inputs: such a text is recomputed alone."""
        self.recomputed += 1
        (result,) = self._forward(outputs, [text], torch.float32).computed()
        if result is None:
            raise NotFiniteError("a result is not finite, not even in fp32")
        return result

    @torch.inference_mode()
    def _forward(
        self, outputs: Outputs, texts: Sequence[Encoded], dtype: torch.dtype
    ) -> PackedBatch:
        role: Role = "rerank" if outputs is Outputs.RELEVANCE else "embed"
        network, _, manifest = self._models[role]
        # Sorted by length: the sdpa backend takes a run of texts of equal length in one call.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index].ids))
        ids = [texts[index].ids for index in order]
        tensors = None
        if dtype == self._dtype and role in self._graphs:
            tensors = self._graphs[role].compute(outputs, ids)
        if tensors is None:
            pad_token_id = manifest.config.pad_token_id
            batch = pack(ids, pad_token_id, self._device, has_padding=self._has_padding)
            attention = self._attention if dtype == self._dtype else SDPA
            tensors = network.compute(batch, outputs, attention, dtype)
        copy = HostCopy.of(tensors)
        return PackedBatch(self, outputs, texts, order, copy, manifest.config.special_ids)


@dataclass(frozen=True)
class PackedBatch:
    """A micro-batch that the device computes, or has computed. `order` sorts `texts` by length."""

    engine: PackedEngine
    outputs: Outputs
    texts: Sequence[Encoded]
    order: Sequence[int]
    copy: HostCopy
    special_ids: tuple[int, ...]

    @property
    def is_asynchronous(self) -> bool:
        return self.copy.event is not None

    def wait(self) -> None:
        if self.copy.event is not None:
            with device_errors_translated():
                self.copy.event.synchronize()

    def results(self) -> Sequence[Result]:
        return self.engine.finish(self)

    def computed(self) -> list[Result | None]:
        """Return a result for each text, None where a number is not finite."""
        arrays = self.copy.arrays()
        in_order: Sequence[Result | None]
        if self.outputs is Outputs.RELEVANCE:
            in_order = logits_of_pairs(arrays)
        else:
            ids = [self.texts[index].ids for index in self.order]
            in_order = embeddings_of_texts(arrays, ids, self.special_ids)
        results = dict(zip(self.order, in_order, strict=True))
        return [results[index] for index in range(len(self.texts))]


def dummy_text(length: int, config: Config) -> Encoded:
    """Return a text of unknown tokens, of `length` or the model's longest."""
    length = min(length, config.max_length)
    ids = [config.bos_token_id, *[config.unk_token_id] * (length - 2), config.eos_token_id]
    return Encoded(ids, length)


def load_engine(settings: Settings) -> Engine:
    """Load the engine that `BGE_ENGINE` names.

    Raises StartError: a setting, a checkpoint or a missing package.
    """
    if settings.engine == "packed":
        return PackedEngine(settings)
    # Imported here: FlagEmbedding and transformers are optional and take seconds to import.
    from .reference import ReferenceEngine

    return ReferenceEngine(settings)
