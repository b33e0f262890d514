"""Every backend against a plain implementation, text by text, in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bge_worker.engine.attention import Attention, Segments, choose_attention, sdpa, varlen
from bge_worker.engine.packing import single_row_segments

HAS_VARLEN = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
needs_varlen = pytest.mark.skipif(not HAS_VARLEN, reason="needs a GPU of capability 8.0 and up")
BACKENDS = [
    pytest.param(sdpa, "cpu", torch.float32, 1e-5, id="sdpa-cpu"),
    pytest.param(sdpa, "cpu", torch.float16, 2e-3, id="sdpa-cpu-half"),
    pytest.param(sdpa, "cuda", torch.float16, 2e-3, id="sdpa-cuda", marks=needs_varlen),
    pytest.param(varlen, "cuda", torch.float16, 2e-3, id="varlen", marks=needs_varlen),
    pytest.param(varlen, "cuda", torch.float32, 1e-5, id="varlen-float32", marks=needs_varlen),
]
LENGTHS = (1, 5, 5, 5, 2, 64, 3, 3)
HEADS, WIDTH = 3, 16


def segments(lengths: tuple[int, ...], device: str) -> Segments:
    cu_seqlens = torch.tensor((0, *lengths)).cumsum(0)
    return Segments(lengths, cu_seqlens.to(torch.int32).to(device))


def plain_attention(q: Tensor, k: Tensor, v: Tensor, keys: Segments) -> Tensor:
    """q [Tk or N, H, d], k and v [Tk, H, d]."""
    lengths = list(keys.lengths)
    q_lengths = lengths if len(q) == len(k) else [1] * len(lengths)
    texts = zip(q.split(q_lengths), k.split(lengths), v.split(lengths), strict=True)
    outputs = []
    for q_text, k_text, v_text in texts:
        scores = torch.einsum("qhd,khd->hqk", q_text, k_text) * WIDTH**-0.5
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v_text))
    return torch.cat(outputs)


@pytest.mark.parametrize(("run", "device", "dtype", "tolerance"), BACKENDS)
@pytest.mark.parametrize("cls_only", [False, True])
def test_backends_equal_plain_attention(
    run: Attention, device: str, dtype: torch.dtype, tolerance: float, cls_only: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (sum(LENGTHS), HEADS, WIDTH)
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
    keys = segments(LENGTHS, device)
    queries = single_row_segments(len(LENGTHS), torch.device(device)) if cls_only else keys
    if cls_only:
        q = q[keys.cu_seqlens[:-1]]
    expected = plain_attention(q.double(), k.double(), v.double(), keys)
    result = run(q, k, v, queries, keys)  # type: ignore[operator]
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance)


def test_a_cpu_gets_sdpa_with_a_reason() -> None:
    attention = choose_attention(torch.device("cpu"), torch.float32)
    assert (attention.name, attention.run, bool(attention.reason)) == ("sdpa", sdpa, True)
