"""Attention over packed sequences, without padding: one signature, three backends.

Packed tensors are [T, H, d]: the tokens of all texts, concatenated. A query may be shorter than its
keys: the last layer computes first tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Of `blocked`. oneDNN compiles a product for each length, for 0.5 ms, more than short texts gain.
MIN_BLOCKED_QUERIES = 128
BLOCK_SCORES, MIN_BLOCK_ROWS = 1 << 20, 64  # 4 MB


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
    """One scaled_dot_product_attention call for each run of texts of equal length.

    Rows of q after the texts are padding: their results are zero.
    """
    return _by_runs(q, k, v, queries, keys, min_blocked=None)


def blocked(q: Tensor, k: Tensor, v: Tensor, queries: Segments, keys: Segments) -> Tensor:
    """`sdpa`, but long texts by products of oneDNN, whose scores stay in a cache.

    For AMD processors with AVX-512: PyTorch's CPU kernel multiplies through MKL, which uses AVX2
    there. A text of 512 tokens takes 0.6 of its time, one of 8,192 0.55.
    """
    return _by_runs(q, k, v, queries, keys, min_blocked=MIN_BLOCKED_QUERIES)


def _by_runs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Segments,
    keys: Segments,
    min_blocked: int | None,
) -> Tensor:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)  # [Tq, H, d]
    q_row = k_row = 0
    for (q_len, k_len), run in groupby(zip(queries.lengths, keys.lengths, strict=True)):
        n = sum(1 for _ in run)
        q_end, k_end = q_row + n * q_len, k_row + n * k_len
        texts = (
            q[q_row:q_end].view(n, q_len, *q.shape[1:]).transpose(1, 2),  # [n, H, q_len, d]
            k[k_row:k_end].view(n, k_len, *k.shape[1:]).transpose(1, 2),  # [n, H, k_len, d]
            v[k_row:k_end].view(n, k_len, *v.shape[1:]).transpose(1, 2),
        )
        is_blocked = min_blocked is not None and q_len >= min_blocked
        attended = attend_in_blocks(*texts) if is_blocked else scaled_dot_product_attention(*texts)
        rows = out[q_row:q_end].view(n, q_len, *q.shape[1:])
        rows.copy_(attended.transpose(1, 2))  # [n, q_len, H, d]
        q_row, k_row = q_end, k_end
    out[q_row:] = 0
    return out


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k and v [n, H, t, d] in fp32 → [n, H, t, d], at most `BLOCK_SCORES` scores at once."""
    n, num_heads, length, size = q.shape
    q = (q * size**-0.5).flatten(0, 1)  # [n * H, t, d], as k and v
    k, v = k.reshape(q.shape), v.reshape(q.shape)
    out = torch.empty_like(q)
    heads = max(1, BLOCK_SCORES // length**2)
    rows = min(length, max(MIN_BLOCK_ROWS, BLOCK_SCORES // length))
    with products_by_onednn():
        for head in range(0, len(q), heads):
            block = slice(head, head + heads)
            for row in range(0, length, rows):
                scores = torch.bmm(q[block, row : row + rows], k[block].transpose(1, 2))
                torch.softmax(scores, -1, out=scores)
                out[block, row : row + rows] = torch.bmm(scores, v[block])
    return out.view(n, num_heads, length, size)


@contextmanager
def products_by_onednn() -> Iterator[None]:
    """Have PyTorch multiply matrices of fp32 by oneDNN instead of MKL.

    The switch permits oneDNN to multiply in bfloat16, which it does on processors with AMX alone.
    """
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"  # type: ignore[attr-defined]


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
