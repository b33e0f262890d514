"""Each backend against attention by its definition; the operator that `flash` calls.

The operator runs on a CPU through a stand-in, which shows that it is called correctly. The tests
marked `gpu` run its kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bge_worker.engine import attention_choice
from bge_worker.engine.attention import Attention, blocked, flash, sdpa
from bge_worker.engine.attention_choice import HeadShape, find_fault, ragged_batch
from bge_worker.engine.engine import PackedEngine
from bge_worker.engine.outputs import Outputs
from bge_worker.settings import EngineName
from conftest import settings_in
from fakes.engine import ALL_VECTORS
from fakes.flash_kernel import FlashKernel, registered

HAS_FLASH = torch.cuda.is_available() and (
    torch.version.hip is not None or torch.cuda.get_device_capability() >= (8, 0)
)
gpu = pytest.mark.skipif(not HAS_FLASH, reason="needs a GPU with a flash attention kernel")
SHAPES: list[HeadShape] = [(3, 16), (16, 64)]  # of the tests' models, and of the published ones
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# Pinned: an argument that PyTorch adds or moves must fail here, not on a GPU.
SCHEMA = (
    "aten::_flash_attention_forward(Tensor query, Tensor key, Tensor value, Tensor? cum_seq_q, "
    "Tensor? cum_seq_k, SymInt max_q, SymInt max_k, float dropout_p, bool is_causal, "
    "bool return_debug_mask, *, float? scale=None, SymInt? window_size_left=None, "
    "SymInt? window_size_right=None, Tensor? seqused_k=None, Tensor? alibi_slopes=None, "
    "Tensor? block_table=None, int? num_splits=None) -> (Tensor output, "
    "Tensor softmax_logsumexp, Tensor rng_state, Tensor unused, Tensor debug_attn_mask)"
)
TEXTS = ["градиентный спуск", "море", "a transaction " * 9, "суша"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_sdpa_equals_plain_attention(shape: HeadShape, dtype: torch.dtype) -> None:
    assert find_fault(Attention("sdpa", "", sdpa), CPU, dtype, [shape]) is None


@pytest.mark.parametrize("block_scores", [1 << 20, 2 * 512**2, 100 * 512])
def test_blocks_of_scores_change_no_number_beyond_rounding(
    monkeypatch: pytest.MonkeyPatch, block_scores: int
) -> None:
    """All heads at once, two heads, and rows of one."""
    monkeypatch.setattr("bge_worker.engine.attention.BLOCK_SCORES", block_scores)
    qkv, segments = ragged_batch(3, 32, CPU, torch.float32)
    arguments = (*qkv.unbind(1), segments, segments)
    torch.testing.assert_close(blocked(*arguments), sdpa(*arguments), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flash_calls_the_operator_as_its_checks_require(shape: HeadShape) -> None:
    kernel = FlashKernel()
    with registered(kernel):
        fault = find_fault(Attention("flash", "", flash), CPU, torch.float16, [shape])
    assert fault is None
    assert kernel.calls == [(512, 512), (1, 512)]  # all tokens, first tokens alone


@gpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("run", "dtype"),
    [(flash, torch.float16), (sdpa, torch.float16), (sdpa, torch.float32)],
    ids=["flash", "sdpa-float16", "sdpa-float32"],
)
def test_kernels_of_a_gpu_equal_plain_attention(
    run: object, dtype: torch.dtype, shape: HeadShape
) -> None:
    attention = Attention("kernel", "", run)  # type: ignore[arg-type]
    assert find_fault(attention, CUDA, dtype, [shape]) is None


def test_the_operator_is_the_one_that_was_read() -> None:
    assert str(torch.ops.aten._flash_attention_forward.default._schema) == SCHEMA


@pytest.fixture
def flash_engine(
    runtimes: Callable[[EngineName], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[PackedEngine]:
    """The engine in fp16, as on a GPU, with the operator's stand-in."""
    monkeypatch.setattr(attention_choice, "flash_obstacle", lambda *_: None)
    with registered(FlashKernel()):
        engine = PackedEngine(settings_in(runtimes("packed"), dtype="float16"))
        assert engine.runtime.attention == "flash"
        yield engine


@pytest.mark.parametrize("outputs", [Outputs.DENSE, ALL_VECTORS], ids=str)
def test_embeddings_through_flash_equal_those_in_fp32(
    flash_engine: PackedEngine, packed: PackedEngine, outputs: Outputs
) -> None:
    encoded = packed.encode_texts(TEXTS, 8192)
    results, references = flash_engine.run(outputs, encoded), packed.run(outputs, encoded)
    for result, reference in zip(results, references, strict=True):
        np.testing.assert_allclose(result.dense, reference.dense, atol=2e-3)
        if Outputs.COLBERT in outputs:
            np.testing.assert_allclose(result.colbert, reference.colbert, atol=4e-3)
            values = dict(zip(*result.sparse, strict=True))
            expected = dict(zip(*reference.sparse, strict=True))
            assert values == pytest.approx(expected, abs=4e-3)


def test_scores_through_flash_equal_those_in_fp32(
    flash_engine: PackedEngine, packed: PackedEngine
) -> None:
    encoded = packed.encode_pairs(["море"], TEXTS, 1024)
    scores = flash_engine.run(Outputs.RELEVANCE, encoded)
    assert scores == pytest.approx(packed.run(Outputs.RELEVANCE, encoded), abs=2e-2)
