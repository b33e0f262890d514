"""Every backend against attention written out, text by text, in fp64."""

from __future__ import annotations

import pytest
import torch

from bge_worker.engine.attention import Attention, Segments, choose_attention, sdpa, varlen
from bge_worker.engine.packing import single_row_segments

HAS_VARLEN = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
needs_varlen = pytest.mark.skipif(not HAS_VARLEN, reason="needs a GPU of capability 8.0 and up")
BACKENDS = [
    pytest.param(sdpa, "cpu", torch.float32, 1e-5, id="sdpa-cpu"),
    pytest.param(sdpa, "cpu", torch.float16, 2e-3, id="sdpa-cpu-half"),
    pytest.param(sdpa, "cuda", torch.float16, 2e-3, id="sdpa-cuda", marks=needs_varlen),
    pytest.param(varlen, "cuda", torch.float16, 2e-3, id="varlen", marks=needs_varlen),
    pytest.param(varlen, "cuda", torch.float32, 1e-5, id="varlen-single", marks=needs_varlen),
]
LENGTHS = (1, 5, 5, 5, 2, 64, 3, 3)
HEADS, WIDTH = 3, 16


def segments(lengths: tuple[int, ...], device: str) -> Segments:
    ends = torch.tensor((0, *lengths)).cumsum(0)
    return Segments(lengths, ends.to(torch.int32).to(device))


def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keys: Segments) -> torch.Tensor:
    """q [Tk or N, H, d], k and v [Tk, H, d]."""
    q_lengths = keys.lengths if len(q) == len(k) else (1,) * len(keys.lengths)
    outputs = []
    for one, two, three in zip(
        q.split(list(q_lengths)),
        k.split(list(keys.lengths)),
        v.split(list(keys.lengths)),
        strict=True,
    ):
        scores = torch.einsum("qhd,khd->hqk", one, two) * WIDTH**-0.5
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), three))
    return torch.cat(outputs)


@pytest.mark.parametrize(("run", "device", "dtype", "tolerance"), BACKENDS)
@pytest.mark.parametrize("cls_only", [False, True])
def test_backends_agree_with_attention_written_out(
    run: Attention, device: str, dtype: torch.dtype, tolerance: float, cls_only: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (sum(LENGTHS), HEADS, WIDTH)
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
    keys = segments(LENGTHS, device)
    queries = single_row_segments(len(LENGTHS), torch.device(device)) if cls_only else keys
    if cls_only:
        q = q[keys.cu_seqlens[:-1]]
    expected = written_out(q.double(), k.double(), v.double(), keys)
    found = run(q, k, v, queries, keys)  # type: ignore[operator]
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


def test_the_choice_says_why() -> None:
    on_cpu = choose_attention(torch.device("cpu"), torch.float32)
    assert (on_cpu.name, on_cpu.reason) == ("sdpa", "cpu has no varlen kernel")
