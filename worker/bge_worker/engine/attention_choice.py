"""Which attention backend runs: the fastest that computes correctly on this device.

A wrong kernel returns plausible vectors. So the backend is compared with plain attention in fp32,
on the device, before the first request.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import StartError
from ..settings import AttentionName
from .attention import Attention, Segments, blocked, flash, sdpa
from .packing import single_row_segments

log = logging.getLogger(__name__)

# Around the kernels' block sizes, 64 and 128.
CHECKED_LENGTHS = (1, 2, 7, 7, 64, 65, 130, 512)  # two equal ones: `sdpa` takes them together
MAX_DIFFERENCE = 2e-3  # fp16 rounds values up to 1 by at most 5e-4, twice
FLASH_CAPABILITY = (8, 0)
MAX_FLASH_HEAD_SIZE = 256

HeadShape = tuple[int, int]  # number of heads, head size


def choose_attention(
    requested: AttentionName,
    device: torch.device,
    dtype: torch.dtype,
    head_shapes: Iterable[HeadShape],
) -> Attention:
    """Return the backend for models of these heads.

    Raises StartError: `attention` is flash, which is not available or not correct here; or no
    backend is correct.
    """
    shapes = sorted({*head_shapes})
    if requested == "sdpa":
        return checked_sdpa("`attention` (`BGE_ATTENTION`) is sdpa", device, dtype, shapes)
    obstacle = flash_obstacle(device, dtype, [size for _, size in shapes])
    if obstacle is None:
        obstacle = find_fault(flash_on(device), device, dtype, shapes)
        if obstacle is None:
            return flash_on(device)
        log.warning("attention runs through sdpa, which is slower: %s", obstacle)
    if requested == "flash":
        raise StartError(f"`attention` (`BGE_ATTENTION`) is flash, but {obstacle}")
    if device.type == "cpu" and dtype == torch.float32 and mkl_lacks_avx512():
        attention = Attention("blocked", "MKL has no AVX-512 for this processor", blocked)
        if (fault := find_fault(attention, device, dtype, shapes)) is None:
            return attention
        log.warning("attention runs through sdpa, which is slower: %s", fault)
    return checked_sdpa(obstacle, device, dtype, shapes)


def mkl_lacks_avx512() -> bool:
    """Whether oneDNN uses AVX-512 in fp32 and MKL does not: on AMD's processors that have it."""
    processor = torch.cpu.get_capabilities()
    has_avx512 = processor.get("avx512_f", False) and not processor.get("amx_tile", False)
    return has_avx512 and "AMD" in processor.get("cpu_name", "")


def flash_on(device: torch.device) -> Attention:
    if device.type != "cuda":  # in the tests, where a CPU stands in
        return Attention("flash", device.type, flash, is_capturable=True)
    if torch.version.hip is not None:
        architecture = torch.cuda.get_device_properties(device).gcnArchName
        return Attention("flash", architecture, flash)  # graphs bring nothing there
    major, minor = torch.cuda.get_device_capability(device)
    return Attention("flash", f"compute capability {major}.{minor}", flash, is_capturable=True)


def flash_obstacle(
    device: torch.device, dtype: torch.dtype, head_sizes: Iterable[int]
) -> str | None:
    """Return why there is no flash kernel for this device and these models, None if there is."""
    if device.type != "cuda":
        return f"{device.type} has no flash attention kernel"
    if dtype == torch.float32:
        return "flash attention takes half precision only, not float32"
    for size in head_sizes:
        if size % 8 or size > MAX_FLASH_HEAD_SIZE:
            return f"flash attention takes head sizes that are multiples of 8 up to 256, not {size}"
    if torch.version.hip is not None:
        return None
    capability = torch.cuda.get_device_capability(device)
    if capability < FLASH_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    return None


def checked_sdpa(
    reason: str, device: torch.device, dtype: torch.dtype, shapes: Iterable[HeadShape]
) -> Attention:
    """Return the `sdpa` backend. A CPU's is checked by the tests, not at each start."""
    attention = Attention("sdpa", reason, sdpa)
    fault = None if device.type == "cpu" else find_fault(attention, device, dtype, shapes)
    if fault is not None:
        raise StartError(f"no attention backend computes correctly on this device: {fault}")
    return attention


def find_fault(
    attention: Attention, device: torch.device, dtype: torch.dtype, shapes: Iterable[HeadShape]
) -> str | None:
    """Return what is wrong with a backend on this device, None if nothing is."""
    for num_heads, head_size in shapes:
        heads = f"({num_heads} heads of {head_size})"
        try:
            difference = largest_difference(attention, device, dtype, num_heads, head_size)
        except Exception as error:  # whatever a kernel raises
            reason = str(error).partition("\n")[0]
            return f"{attention.name} fails with {type(error).__name__}: {reason} {heads}"
        if not math.isfinite(difference):
            return f"{attention.name} returns numbers that are not finite {heads}"
        if difference > MAX_DIFFERENCE:
            return (
                f"{attention.name} differs from attention in fp32 by {difference:.1e}, "
                f"more than {MAX_DIFFERENCE:.0e} {heads}"
            )
    return None


@torch.inference_mode()
def largest_difference(
    attention: Attention,
    device: torch.device,
    dtype: torch.dtype,
    num_heads: int,
    head_size: int,
) -> float:
    """Return the largest difference of a backend from plain attention in fp32.

    Over a ragged batch, of all tokens and of first tokens alone. Not finite if an output is not.
    """
    qkv, keys = ragged_batch(num_heads, head_size, device, dtype)
    q, k, v = qkv.unbind(1)  # [T, H, d] each, strided as in a layer
    first_rows = keys.cu_seqlens[:-1]
    queries = single_row_segments(len(keys.lengths), device)
    output = attention.run(q, k, v, keys, keys)  # [T, H, d]
    first_output = attention.run(q.index_select(0, first_rows), k, v, queries, keys)  # [N, H, d]
    expected = plain_attention(q, k, v, keys)
    first_expected = expected.index_select(0, first_rows)
    differences = torch.cat([output.float() - expected, first_output.float() - first_expected])
    return float(differences.abs().max())


def ragged_batch(
    num_heads: int, head_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Segments]:
    """Return a fused qkv [T, 3, H, d] of random texts of `CHECKED_LENGTHS`. Values are up to 1."""
    generator = torch.Generator().manual_seed(0)
    shape = (sum(CHECKED_LENGTHS), 3, num_heads, head_size)
    qkv = torch.rand(shape, generator=generator) * 2 - 1
    qkv[:, :2] *= 3  # of queries and keys, so that softmax is far from uniform
    cu_seqlens = torch.tensor((0, *CHECKED_LENGTHS)).cumsum(0).to(torch.int32)
    segments = Segments(CHECKED_LENGTHS, cu_seqlens.to(device), max(CHECKED_LENGTHS))
    return qkv.to(device, dtype), segments


def plain_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """q, k, v [T, H, d] → [T, H, d] in fp32, text by text, by the definition."""
    outputs = []
    texts = (tensor.float().split_with_sizes(segments.lengths) for tensor in (q, k, v))
    for q_text, k_text, v_text in zip(*texts, strict=True):  # [t, H, d]
        scores = torch.einsum("qhd,khd->hqk", q_text, k_text) * q.shape[-1] ** -0.5
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v_text))
    return torch.cat(outputs)
