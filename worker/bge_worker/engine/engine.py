"""Encoded texts → vectors or scores, on one device.

`PackedEngine` runs our own forward pass. `reference.ReferenceEngine` has the same interface and
runs FlagEmbedding.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from .checkpoint import ENGINES, INT8, TOKENIZER, Layout, Manifest, Network, load
from .config import Config, ModelInfo, Role
from .graphs import Graphs, capture_graphs
from .heads import HostCopy, embeddings_of_texts, logits_of_pairs
from .outputs import Outputs, Result
from .packing import pack
from .tokenizer import Encoded, Tokenizer, open_tokenizer

log = logging.getLogger(__name__)

GPU_BATCH_TOKENS, CPU_BATCH_TOKENS = 16384, 2048
WARM_UP_LENGTHS = (16, 64, 512, 2048, 8192)  # tokens: a library's kernels differ by size
WARM_UP_OUTPUTS: dict[Role, tuple[Outputs, ...]] = {
    "embed": (Outputs.DENSE, Outputs.DENSE | Outputs.SPARSE | Outputs.COLBERT),
    "rerank": (Outputs.RELEVANCE,),
}


@dataclass(frozen=True)
class Runtime:
    """Where and how an engine runs, as `info` reports it."""

    engine: str
    device: str
    dtype: str
    attention: str
    attention_reason: str
    max_batch_tokens: int


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
        """Wait for the device. Raises OutOfMemoryError, or what the device reports."""

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
        began = perf_counter()
        self._models = self._load_all(folders)
        loaded = perf_counter()
        head_shapes = [model.manifest.config.head_shape for model in self._models.values()]
        self._attention = choose_attention(
            settings.attention, self._device, self._dtype, head_shapes
        )
        checked = perf_counter()
        self.models = {role: model_info(model.manifest) for role, model in self._models.items()}
        name, reason, _ = self._attention
        dtype = INT8 if is_int8 else str(self._dtype).removeprefix("torch.")
        self.runtime = make_runtime(settings, self._device, dtype, name, reason)
        self._graphs: dict[Role, Graphs] = {}
        self._warm_up()
        warm = perf_counter()
        if settings.cuda_graphs and self._device.type == "cuda" and torch.version.hip is None:
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
                *(model.network, outputs, model.manifest.config, self._attention, self._dtype)
            )
            for role, model in self._models.items()
            for outputs in WARM_UP_OUTPUTS[role][:1]
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
        with out_of_memory_translated():
            return self._forward(outputs, texts, self._dtype)

    def finish(self, batch: PackedBatch) -> Sequence[Result]:
        """See `PackedBatch.results`."""
        with out_of_memory_translated():
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
            batch = pack(ids, manifest.config.pad_token_id, self._device)
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
            with out_of_memory_translated():
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


def runtime_folders(settings: Settings, layout: Layout) -> dict[Role, tuple[Path, Manifest]]:
    """Return the folder and the manifest of each model that the settings name.

    Raises StartError: there is no manifest, or one of another role or for another engine.
    """
    folders: dict[Role, tuple[Path, Manifest]] = {}
    roles: dict[Role, Path | None] = {
        "embed": settings.embed_model,
        "rerank": settings.rerank_model,
    }
    for role, folder in roles.items():
        if folder is None:
            continue
        manifest = Manifest.read(folder)
        if manifest.layout != layout:
            raise StartError(
                f"`{folder}` was converted for the engine {ENGINES[manifest.layout]}; "
                f"`BGE_ENGINE` is {ENGINES[layout]}"
            )
        if manifest.role != role:
            raise StartError(f"`{folder}` holds a model to {manifest.role}, not to {role}")
        folders[role] = folder, manifest
    return folders


def choose_device(settings: Settings) -> torch.device:
    """Raises StartError if `BGE_DEVICE` is cuda and there is no GPU."""
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise StartError("`BGE_DEVICE` is cuda, but PyTorch sees no GPU")
    return torch.device("cuda" if available and settings.device != "cpu" else "cpu")


def check_int8(
    settings: Settings, device: torch.device, folders: Mapping[Role, tuple[Path, Manifest]]
) -> bool:
    """Return whether the folders hold int8 models. Warns of a processor without int8 products.

    Raises StartError: one of two folders does, or `BGE_DTYPE` or the device requires another.
    """
    by_dtype = {manifest.dtype == INT8: folder for folder, manifest in folders.values()}
    if len(by_dtype) == 2:
        raise StartError(f"`{by_dtype[True]}` is in int8 and `{by_dtype[False]}` is not")
    (is_int8,) = by_dtype
    if settings.dtype == INT8 and not is_int8:
        raise StartError(
            f"`BGE_DTYPE` is int8, and `{by_dtype[False]}` is not: make it with "
            "`python -m bge_builder convert --dtype int8`"
        )
    if is_int8 and settings.dtype not in ("auto", INT8):
        raise StartError(f"`BGE_DTYPE` is {settings.dtype}, and `{by_dtype[True]}` is in int8")
    if is_int8 and device.type != "cpu":
        raise StartError(f"`{by_dtype[True]}` is in int8, which runs on a CPU: set `BGE_DEVICE`")
    if is_int8 and not torch.cpu._is_vnni_supported():
        log.warning("this processor has no int8 products (VNNI): int8 is less exact and slow here")
    return is_int8


def choose_dtype(settings: Settings, device: torch.device) -> torch.dtype:
    """float16 on a GPU, float32 on a CPU (in int8 too, between products), unless `BGE_DTYPE` is."""
    half = settings.dtype == "float16" or (settings.dtype == "auto" and device.type == "cuda")
    return torch.float16 if half else torch.float32


def make_runtime(
    settings: Settings, device: torch.device, dtype: str, attention: str, reason: str
) -> Runtime:
    on_gpu = device.type == "cuda"
    batch_tokens = GPU_BATCH_TOKENS if on_gpu else CPU_BATCH_TOKENS
    return Runtime(
        engine=settings.engine,
        device=torch.cuda.get_device_name(device) if on_gpu else "cpu",
        dtype=dtype,
        attention=attention,
        attention_reason=reason,
        max_batch_tokens=settings.max_batch_tokens or batch_tokens,
    )


@contextmanager
def out_of_memory_translated() -> Iterator[None]:
    """Turn PyTorch's out-of-memory errors, of a GPU or a CPU, into OutOfMemoryError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not out_of_memory and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError("the device is out of memory") from error


def model_info(manifest: Manifest) -> ModelInfo:
    return ModelInfo(
        model=manifest.model,
        revision=manifest.revision,
        fingerprint=manifest.fingerprint,
        width=manifest.config.hidden_size,
        vocab_size=manifest.config.vocab_size,
        max_length=manifest.config.max_length,
    )
