"""Encoded texts → vectors or scores, on one device. No JSON, no RunPod.

`PackedEngine` is the product; `reference.ReferenceEngine` answers the same calls through
FlagEmbedding. Both raise what they cannot do; who else shares the micro-batch is the batcher's
business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import OutOfMemoryError, StartError
from ..serving.requests import EmbedRequest, Outputs, Work
from ..settings import Settings
from . import heads
from .attention import choose_attention
from .checkpoint import TOKENIZER, Layout, Manifest, Network, Role, load
from .heads import SparseVector
from .packing import Batch, pack, rows_after_first, split_rows
from .tokenizer import Encoded, Tokenizer, open_tokenizer

GPU_BATCH_TOKENS, CPU_BATCH_TOKENS = 16384, 2048


class Embedding(NamedTuple):
    """What one text was asked for: dense [D], sparse, ColBERT [t − 1, D]; float32."""

    dense: npt.NDArray[np.float32] | None
    sparse: SparseVector | None
    colbert: npt.NDArray[np.float32] | None


Result = Embedding | float  # a float is the logit of a pair


@dataclass(frozen=True)
class ModelInfo:
    """What `info` says of one model. `width` is the number of dimensions D."""

    model: str
    revision: str | None
    fingerprint: str
    width: int
    vocab_size: int
    max_length: int


@dataclass(frozen=True)
class Runtime:
    """Where and how an engine runs."""

    engine: str
    device: str
    dtype: str
    attention: str
    attention_reason: str
    max_batch_tokens: int


class Engine(Protocol):
    """What the batcher and the service ask of an engine. `run` is called from one thread."""

    runtime: Runtime
    models: dict[Role, ModelInfo]
    recomputed: int  # texts redone in fp32 since the start

    def encode(self, work: Work, start: int, end: int) -> list[Encoded]:
        """Tokenise `work.texts[start:end]`; thread-safe, beside a running `run`."""

    def run(self, outputs: Outputs, texts: Sequence[Encoded]) -> Sequence[Result]:
        """One result for each text, in order, every number of it finite.

        Raises:
            OutOfMemoryError: the texts together do not fit the device.
            FloatingPointError: a text's result is not finite, in fp32 either.
        """


class NotFiniteError(FloatingPointError):
    """A result that must not be sent."""


class _Loaded(NamedTuple):
    network: Network
    tokenizer: Tokenizer
    manifest: Manifest


class PackedEngine:
    """Our own forward pass over packed texts."""

    def __init__(self, settings: Settings) -> None:
        """Load the models and warm the device up.

        Raises:
            StartError: a folder or the device is not what the settings say.
        """
        self.recomputed = 0
        self._device = choose_device(settings)
        self._dtype = choose_dtype(settings, self._device)
        self._attention = choose_attention(self._device, self._dtype)
        on_gpu = self._device.type == "cuda"
        self._loaded = self._load_all(settings)
        self.models = {role: model_info(one.manifest) for role, one in self._loaded.items()}
        self.runtime = Runtime(
            engine="packed",
            device=torch.cuda.get_device_name(self._device) if on_gpu else "cpu",
            dtype=str(self._dtype).removeprefix("torch."),
            attention=self._attention.name,
            attention_reason=self._attention.reason,
            max_batch_tokens=settings.max_batch_tokens
            or (GPU_BATCH_TOKENS if on_gpu else CPU_BATCH_TOKENS),
        )
        self._warm_up()

    def _load_all(self, settings: Settings) -> dict[Role, _Loaded]:
        """Both models at once: reading one overlaps unpacking the other."""
        folders = model_folders(settings)
        manifests = {role: read_manifest(path, role, "fused") for role, path in folders.items()}
        with ThreadPoolExecutor() as pool:
            # Folders whose tokenizer.json is the same file share one tokenizer.
            tokenizers = {
                manifests[role].files[TOKENIZER].sha256: folder / TOKENIZER
                for role, folder in folders.items()
            }
            opening = {
                sha256: pool.submit(open_tokenizer, path) for sha256, path in tokenizers.items()
            }
            loading = {
                role: pool.submit(load, folder, manifests[role], self._device, self._dtype)
                for role, folder in folders.items()
            }
            networks = {role: future.result() for role, future in loading.items()}
            fast = {sha256: future.result() for sha256, future in opening.items()}
        return {
            role: _Loaded(
                networks[role],
                Tokenizer(fast[manifest.files[TOKENIZER].sha256], manifest.config),
                manifest,
            )
            for role, manifest in manifests.items()
        }

    def _warm_up(self) -> None:
        """A GPU's first calls pay for kernels, handles and memory: pay before the first request.

        One text, and a full micro-batch, so that its memory is reserved. A CPU has nothing to
        warm but the weights' pages, which the first request brings in just as fast.

        Raises:
            StartError: the models do not run here.
        """
        if self._device.type != "cuda":
            return
        for role, one in self._loaded.items():
            config = one.manifest.config
            length = min(512, self.runtime.max_batch_tokens, config.positions)
            ids = [config.bos_id, *[config.unk_id] * (length - 2), config.eos_id]
            text = Encoded(ids, length, "", length)
            counts = (1, self.runtime.max_batch_tokens // length)
            for outputs, count in product(_warm_up_outputs(role), counts):
                try:
                    self.run(outputs, [text] * count)
                except (RuntimeError, FloatingPointError, OutOfMemoryError) as error:
                    raise StartError(
                        f"`{one.manifest.model}` does not run on {self.runtime.device}: {error}"
                    ) from error

    def encode(self, work: Work, start: int, end: int) -> list[Encoded]:
        if isinstance(work, EmbedRequest):
            tokenizer = self._loaded["embed"].tokenizer
            return tokenizer.encode_texts(work.texts[start:end], work.max_length)
        tokenizer = self._loaded["rerank"].tokenizer
        return tokenizer.encode_pairs(work.query, work.texts[start:end], work.max_length)

    def run(self, outputs: Outputs, texts: Sequence[Encoded]) -> Sequence[Result]:
        with out_of_memory_translated():
            results = self._forward(outputs, texts, self._dtype)
            return [
                result if result is not None else self._in_fp32(outputs, text)
                for result, text in zip(results, texts, strict=True)
            ]

    def _in_fp32(self, outputs: Outputs, text: Encoded) -> Result:
        """bge-m3 is known to overflow in fp16 on some inputs: such a text is redone alone."""
        self.recomputed += 1
        (result,) = self._forward(outputs, [text], torch.float32)
        if result is None:
            raise NotFiniteError("a result is not finite, in fp32 either")
        return result

    @torch.inference_mode()
    def _forward(
        self, outputs: Outputs, texts: Sequence[Encoded], dtype: torch.dtype
    ) -> Sequence[Result | None]:
        """A result for each text, or None where it is not finite."""
        one = self._loaded["rerank" if outputs is Outputs.RELEVANCE else "embed"]
        # Texts of equal length side by side: the sdpa backend takes such a run in one call.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
        ids = [texts[i].ids for i in order]
        batch = pack(ids, one.manifest.config.pad_id, self._device)
        hidden = one.network.encoder(
            batch,
            self._attention,
            first_only=not outputs & (Outputs.SPARSE | Outputs.COLBERT),
            dtype=dtype,
        )
        results: list[Result | None] = [None] * len(texts)
        for place, result in zip(order, _read_off(outputs, hidden, batch, ids, one), strict=True):
            results[place] = result
        return results


def _read_off(
    outputs: Outputs, hidden: Tensor, batch: Batch, ids: Sequence[Sequence[int]], one: _Loaded
) -> Sequence[Result | None]:
    """hidden [T, D], or [N, D] when first tokens are enough → a result for each text."""
    lengths = batch.texts.lengths
    # Every text has two tokens at least, so N rows are the first tokens.
    first = hidden if len(hidden) == len(lengths) else hidden[batch.first_rows]  # [N, D]
    head: Any = one.network.head
    if outputs is Outputs.RELEVANCE:
        logits = to_numpy(heads.relevance(first, head))  # [N]
        return [float(logit) if np.isfinite(logit) else None for logit in logits]
    dense: Sequence[Any] = [None] * len(lengths)
    weights, colbert = dense, dense
    if Outputs.DENSE in outputs:
        dense = list(to_numpy(heads.dense(first)))
    if Outputs.SPARSE in outputs:
        weights = split_rows(to_numpy(heads.token_weights(hidden, head)), lengths)
    if Outputs.COLBERT in outputs:
        rows = torch.from_numpy(rows_after_first(batch.texts)).to(hidden.device)
        vectors = to_numpy(heads.colbert(hidden[rows], head))
        colbert = split_rows(vectors, [length - 1 for length in lengths])
    special_ids = one.manifest.config.special_ids
    return [
        _embedding(*parts, special_ids) for parts in zip(dense, weights, colbert, ids, strict=True)
    ]


def _embedding(
    dense: npt.NDArray[np.float32] | None,
    weights: npt.NDArray[np.float32] | None,
    colbert: npt.NDArray[np.float32] | None,
    ids: Sequence[int],
    special_ids: tuple[int, ...],
) -> Embedding | None:
    """One text's outputs, or None if a number is not finite."""
    asked = [array for array in (dense, weights, colbert) if array is not None]
    if not all(np.isfinite(array).all() for array in asked):
        return None
    sparse = None if weights is None else heads.sparse(weights, np.array(ids), special_ids)
    return Embedding(dense, sparse, colbert)


def to_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    return tensor.cpu().numpy()


def model_folders(settings: Settings) -> dict[Role, Path]:
    folders: dict[Role, Path | None] = {
        "embed": settings.embed_model,
        "rerank": settings.rerank_model,
    }
    return {role: folder for role, folder in folders.items() if folder is not None}


def read_manifest(folder: Path, role: Role, layout: Layout) -> Manifest:
    """Raises StartError: no manifest, or a model of another role or for another engine."""
    manifest = Manifest.read(folder)
    if manifest.layout != layout:
        engine = {"fused": "packed", "hub": "flagembedding"}
        raise StartError(
            f"`{folder}` is made for the engine {engine[manifest.layout]}; "
            f"`BGE_ENGINE` is {engine[layout]}"
        )
    if manifest.role != role:
        raise StartError(f"`{folder}` holds a model to {manifest.role}, not to {role}")
    return manifest


def choose_device(settings: Settings) -> torch.device:
    """Raises StartError: a GPU is asked for and there is none."""
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise StartError("`BGE_DEVICE` is cuda, but PyTorch sees no GPU")
    return torch.device("cuda" if available and settings.device != "cpu" else "cpu")


def choose_dtype(settings: Settings, device: torch.device) -> torch.dtype:
    """float16 on a GPU, float32 on a CPU, unless the settings say otherwise."""
    if settings.dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return torch.float16 if settings.dtype == "float16" else torch.float32


@contextmanager
def out_of_memory_translated() -> Iterator[None]:
    """PyTorch's out-of-memory errors, of a GPU or a CPU, as our own."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError("the device is out of memory") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError("the device is out of memory") from error


def _warm_up_outputs(role: Role) -> list[Outputs]:
    if role == "rerank":
        return [Outputs.RELEVANCE]
    return [Outputs.DENSE, Outputs.DENSE | Outputs.SPARSE | Outputs.COLBERT]


def model_info(manifest: Manifest) -> ModelInfo:
    return ModelInfo(
        model=manifest.model,
        revision=manifest.revision,
        fingerprint=manifest.fingerprint,
        width=manifest.config.width,
        vocab_size=manifest.config.vocab_size,
        max_length=manifest.config.positions,
    )
