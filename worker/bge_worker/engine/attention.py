"""Attention over packed sequences, without padding: one signature, two backends.

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
    max_seqlen: int


class Attention(NamedTuple):
    """A backend and why it was chosen.

    `is_capturable`: it reads the texts' lengths on the device alone, so that a CUDA graph of it
    computes other lengths too.

    `run(q [Tq, H, d], k [Tk, H, d], v [Tk, H, d], queries, keys)` returns [Tq, H, d]: text i of
    `queries` attends to text i of `keys`, scaled by d ** -0.5, softmax in fp32.
    """

    name: str
    reason: str
    run: Callable[[Tensor, Tensor, Tensor, Segments, Segments], Tensor]
    is_capturable: bool = False


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


def flash(q: Tensor, k: Tensor, v: Tensor, queries: Segments, keys: Segments) -> Tensor:
    """PyTorch's variable-length flash attention: FlashAttention 2 on CUDA, AOTriton on ROCm.

    Half precision only, d a multiple of 8 up to 256, rows 16-byte aligned. Slices of a fused qkv
    are: their rows and offsets are multiples of d elements.

    The operator is called directly. `torch.nn.attention.varlen` wraps it, but takes a second to
    import and passes window sizes, with which AOTriton has returned NaN on gfx1100.
    """
    out = torch.ops.aten._flash_attention_forward(
        *(q, k, v, queries.cu_seqlens, keys.cu_seqlens, queries.max_seqlen, keys.max_seqlen),
        *(0.0, False, False),  # dropout, causal, debug mask
    )
    return cast(Tensor, out[0])


SDPA = Attention("sdpa", "a text is computed again in fp32", sdpa)
