"""Attention over packed sequences, without padding: one signature, several backends.

Packed tensors are [T, H, d]: the tokens of all texts, concatenated. A query may be shorter than its
keys: the last layer computes first tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Segments(NamedTuple):
    """The rows of N texts in a packed tensor.

    `lengths` is on the host, so that a backend which loops over texts need not wait for the device.
    `cu_seqlens` is [N + 1] int32 on the device: text i is rows cu[i] to cu[i + 1].
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor

    @property
    def max_seqlen(self) -> int:
        return max(self.lengths)


class Attention(NamedTuple):
    """A backend and why it was chosen.

    `run(q [Tq, H, d], k [Tk, H, d], v [Tk, H, d], queries, keys)` returns [Tq, H, d]: text i of
    `queries` attends to text i of `keys`, scaled by d ** -0.5, softmax in fp32.
    """

    name: str
    reason: str
    run: Callable[[Tensor, Tensor, Tensor, Segments, Segments], Tensor]


def choose_attention(device: torch.device, dtype: torch.dtype) -> Attention:
    """Return the fastest backend for this device and dtype."""
    if device.type != "cuda":
        return Attention("sdpa", f"{device.type} has no varlen kernel", sdpa)
    if torch.version.hip is not None:
        return Attention("sdpa", "ROCm build: varlen_attn is for CUDA", sdpa)
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return Attention("sdpa", f"compute capability {major}.{minor} is below 8.0", sdpa)
    if dtype == torch.float32:
        return Attention("sdpa", "the varlen kernel takes half precision only", sdpa)
    return Attention("varlen", f"compute capability {major}.{minor}", varlen)


def sdpa(q: Tensor, k: Tensor, v: Tensor, queries: Segments, keys: Segments) -> Tensor:
    """One scaled_dot_product_attention call for each run of texts of equal length."""
    outputs = []
    q_row = k_row = 0
    for (q_len, k_len), run in groupby(zip(queries.lengths, keys.lengths, strict=True)):
        n = sum(1 for _ in run)
        q_end, k_end = q_row + n * q_len, k_row + n * k_len
        out = scaled_dot_product_attention(
            q[q_row:q_end].view(n, q_len, *q.shape[1:]).transpose(1, 2),  # [n, H, q_len, d]
            k[k_row:k_end].view(n, k_len, *k.shape[1:]).transpose(1, 2),  # [n, H, k_len, d]
            v[k_row:k_end].view(n, k_len, *v.shape[1:]).transpose(1, 2),
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))  # [n * q_len, H, d]
        q_row, k_row = q_end, k_end
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def varlen(q: Tensor, k: Tensor, v: Tensor, queries: Segments, keys: Segments) -> Tensor:
    """PyTorch's variable-length flash attention.

    It supports neither fp32 nor head sizes that are no multiple of 8: those go through `sdpa`.
    """
    if q.dtype == torch.float32 or q.shape[-1] % 8:
        return sdpa(q, k, v, queries, keys)
    # Imported here: the module imports CUDA code, which a CPU worker's cold start need not load.
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        q, k, v, queries.cu_seqlens, keys.cu_seqlens, queries.max_seqlen, keys.max_seqlen
    )
    return cast(Tensor, out)  # a tuple only when auxiliary outputs are requested
