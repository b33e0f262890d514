"""A stand-in for the operator of flash attention, on a CPU.

It checks what the CUDA code checks and computes by sdpa in fp32. It shows that the engine calls the
operator correctly; it says nothing about a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

HALF = (torch.float16, torch.bfloat16)


@dataclass
class FlashKernel:
    """`fault` is added to each output; an exception is raised."""

    fault: float | Exception = 0.0
    calls: list[tuple[int, int]] = field(default_factory=list)  # longest query and key of each

    def forward(
        self,
        q: Tensor,  # [Tq, H, d]
        k: Tensor,  # [Tk, H, d]
        v: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        dropout: float,
        is_causal: bool,
        debug: bool,
        **options: Any,
    ) -> tuple[Tensor, ...]:
        if isinstance(self.fault, Exception):
            raise self.fault
        assert (dropout, is_causal, debug) == (0.0, False, False)
        assert not any(value is not None for value in options.values()), options
        check_rows(q, k, v)
        q_lengths, k_lengths = check_offsets(cu_q, q, max_q), check_offsets(cu_k, k, max_k)
        assert len(q_lengths) == len(k_lengths)
        self.calls.append((max_q, max_k))
        texts = zip(q.split(q_lengths), k.split(k_lengths), v.split(k_lengths), strict=True)
        output = torch.cat([attend(*text) for text in texts]) + self.fault
        nothing = torch.empty(0)
        return output.to(q.dtype), nothing, torch.empty(2, dtype=torch.uint64), nothing, nothing


def check_rows(*tensors: Tensor) -> None:
    heads, size = tensors[0].shape[1:]
    assert size % 8 == 0
    assert size <= 256
    assert tensors[1].shape == tensors[2].shape
    for tensor in tensors:
        assert tensor.dtype in HALF
        assert tensor.dtype == tensors[0].dtype
        assert tensor.shape[1:] == (heads, size)
        assert tensor.stride(-1) == 1
        assert tensor.data_ptr() % 16 == 0
        assert tensor.stride(0) * tensor.element_size() % 16 == 0


def check_offsets(offsets: Tensor, rows: Tensor, longest: int) -> list[int]:
    assert offsets.dtype == torch.int32
    assert offsets.is_contiguous()
    lengths: list[int] = offsets.diff().tolist()
    assert (int(offsets[0]), int(offsets[-1])) == (0, len(rows))
    assert max(lengths) <= longest
    return lengths


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [tq, H, d], k and v [tk, H, d] of one text → [tq, H, d] in fp32."""
    q, k, v = (tensor.transpose(0, 1).float() for tensor in (q, k, v))  # [H, t, d]
    return scaled_dot_product_attention(q, k, v).transpose(0, 1)


@contextmanager
def registered(kernel: FlashKernel) -> Iterator[None]:
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", kernel.forward, "CPU")
    try:
        yield
    finally:
        library._destroy()
