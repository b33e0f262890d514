"""Where and how an engine runs: device, dtype, and the folders it loads."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import DeviceError, OutOfMemoryError, StartError
from ..settings import Settings
from .config import ModelInfo, Role
from .manifest import ENGINES, INT8, Layout, Manifest

log = logging.getLogger(__name__)

GPU_BATCH_TOKENS, CPU_BATCH_TOKENS = 16384, 2048


@dataclass(frozen=True)
class Runtime:
    """Where and how an engine runs, as `info` reports it."""

    engine: str
    device: str
    dtype: str
    attention: str
    attention_reason: str
    max_batch_tokens: int


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
                f"`engine` (`BGE_ENGINE`) is {ENGINES[layout]}"
            )
        if manifest.role != role:
            raise StartError(f"`{folder}` holds a model to {manifest.role}, not to {role}")
        folders[role] = folder, manifest
    return folders


def choose_device(settings: Settings) -> torch.device:
    """Raises StartError if `device` is cuda and there is no GPU."""
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise StartError("`device` (`BGE_DEVICE`) is cuda, but PyTorch sees no GPU")
    return torch.device("cuda" if available and settings.device != "cpu" else "cpu")


def check_int8(
    settings: Settings, device: torch.device, folders: Mapping[Role, tuple[Path, Manifest]]
) -> bool:
    """Return whether the folders hold int8 models. Warns of a processor without int8 products.

    Raises StartError: one of two folders does, or `dtype` or the device requires another.
    """
    by_dtype = {manifest.dtype == INT8: folder for folder, manifest in folders.values()}
    if len(by_dtype) == 2:
        raise StartError(f"`{by_dtype[True]}` is in int8 and `{by_dtype[False]}` is not")
    (is_int8,) = by_dtype
    if settings.dtype == INT8 and not is_int8:
        raise StartError(
            f"`dtype` (`BGE_DTYPE`) is int8, and `{by_dtype[False]}` is not: make it with "
            "`python -m bge_builder convert --dtype int8`"
        )
    if is_int8 and settings.dtype not in ("auto", INT8):
        raise StartError(
            f"`dtype` (`BGE_DTYPE`) is {settings.dtype}, and `{by_dtype[True]}` is in int8"
        )
    if is_int8 and device.type != "cpu":
        raise StartError(f"`{by_dtype[True]}` is in int8, which needs `device` (`BGE_DEVICE`) cpu")
    if is_int8 and not torch.cpu._is_vnni_supported():
        log.warning("this processor has no int8 products (VNNI): int8 is less exact and slow here")
    return is_int8


def choose_dtype(settings: Settings, device: torch.device) -> torch.dtype:
    """float16 on a GPU, float32 on a CPU (in int8 too, between products), unless `dtype` is."""
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
def device_errors_translated() -> Iterator[None]:
    """Turn PyTorch's errors of a device into OutOfMemoryError or DeviceError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        # Of a CPU, and of page-locked memory.
        messages = ("can't allocate memory", "CUDA error: out of memory")
        if out_of_memory or any(message in str(error) for message in messages):
            raise OutOfMemoryError("the device is out of memory") from error
        if isinstance(error, torch.AcceleratorError):
            raise DeviceError(str(error).partition("\n")[0]) from error
        raise


def model_info(manifest: Manifest) -> ModelInfo:
    return ModelInfo(
        model=manifest.model,
        revision=manifest.revision,
        fingerprint=manifest.fingerprint,
        width=manifest.config.hidden_size,
        vocab_size=manifest.config.vocab_size,
        max_length=manifest.config.max_length,
    )
