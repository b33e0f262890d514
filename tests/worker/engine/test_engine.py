"""Loading the packed engine, and what it does when a forward overflows or runs out of memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from bge_worker.engine.attention import Attention
from bge_worker.engine.engine import NotFiniteError, PackedEngine
from bge_worker.engine.outputs import Outputs
from bge_worker.engine.runtime import runtime_folders
from bge_worker.engine.tokenizer import open_tokenizer
from bge_worker.errors import OutOfMemoryError, StartError
from bge_worker.settings import EngineName
from conftest import MODELS, settings_in
from fakes.engine import ALL_VECTORS

Runtimes = Callable[[EngineName], Path]
TEXTS = ["градиентный спуск", "море", "a transaction " * 9]


def test_models_with_equal_tokenizers_share_one(
    runtimes: Runtimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_counted = Mock(wraps=open_tokenizer)
    monkeypatch.setattr("bge_worker.engine.engine.open_tokenizer", open_counted)
    assert {*PackedEngine(settings_in(runtimes("packed"))).models} == {"embed", "rerank"}
    assert open_counted.call_count == 1


def test_settings_choose_models_and_runtime(runtimes: Runtimes) -> None:
    folder = runtimes("packed")
    engine = PackedEngine(settings_in(folder, rerank_model=None))
    assert [*engine.models] == ["embed"]
    assert (engine.runtime.max_batch_tokens, engine.runtime.dtype) == (2048, "float32")
    engine = PackedEngine(settings_in(folder, max_batch_tokens=77, dtype="float16"))
    assert (engine.runtime.max_batch_tokens, engine.runtime.dtype) == (77, "float16")


def test_a_folder_of_another_role_or_engine_is_refused(runtimes: Runtimes) -> None:
    folder = runtimes("packed")
    with pytest.raises(StartError, match="holds a model to rerank, not to embed"):
        runtime_folders(settings_in(folder, embed_model=folder / MODELS[1]), "fused")
    with pytest.raises(StartError, match=r"for the engine packed; `engine` \(`BGE_ENGINE`\) is f"):
        runtime_folders(settings_in(folder), "hub")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_stops_the_start(runtimes: Runtimes) -> None:
    with pytest.raises(StartError, match=r"`device` \(`BGE_DEVICE`\) is cuda, but PyTorch"):
        PackedEngine(settings_in(runtimes("packed"), device="cuda"))


# ------------------------------------------------------------------- injected faults


class FaultyAttention:
    """The engine's attention, whose output a test changes."""

    def __init__(self, engine: PackedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dtypes: list[torch.dtype] = []
        self.change: Callable[[torch.Tensor, Any], torch.Tensor] = lambda output, keys: output
        self._attention = engine._attention
        monkeypatch.setattr(engine, "_attention", Attention("faulty", "a test", self._run))

    def _run(self, q: Any, k: Any, v: Any, queries: Any, keys: Any) -> torch.Tensor:
        self.dtypes.append(q.dtype)
        return self.change(self._attention.run(q, k, v, queries, keys), keys)


@pytest.fixture
def attention(packed: PackedEngine, monkeypatch: pytest.MonkeyPatch) -> FaultyAttention:
    return FaultyAttention(packed, monkeypatch)


def embed(engine: PackedEngine, outputs: Outputs = ALL_VECTORS) -> list[Any]:
    return list(engine.run(outputs, engine.encode_texts(TEXTS, 8192)))


@pytest.mark.parametrize(
    "outputs", [Outputs.DENSE, Outputs.SPARSE, Outputs.COLBERT, ALL_VECTORS], ids=str
)
def test_a_text_that_overflows_is_recomputed_alone(
    packed: PackedEngine, attention: FaultyAttention, outputs: Outputs
) -> None:
    expected, recomputed = embed(packed, outputs), packed.recomputed

    def overflow_in_batch(output: torch.Tensor, keys: Any) -> torch.Tensor:
        if len(keys.lengths) == len(TEXTS):
            rows = keys.lengths[0] if len(output) >= sum(keys.lengths) else 1
            output[:rows] = float("nan")  # of the shortest text
        return output

    attention.change = overflow_in_batch
    results = embed(packed, outputs)
    assert packed.recomputed == recomputed + 1
    for result, reference in zip(results, expected, strict=True):
        if Outputs.DENSE in outputs:
            np.testing.assert_allclose(result.dense, reference.dense, atol=1e-5)
        if Outputs.COLBERT in outputs:
            np.testing.assert_allclose(result.colbert, reference.colbert, atol=1e-5)
        if Outputs.SPARSE in outputs:
            assert result.sparse.indices.tolist() == reference.sparse.indices.tolist()


def test_a_text_that_overflows_in_fp16_is_recomputed_in_fp32(
    runtimes: Runtimes, packed: PackedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = PackedEngine(settings_in(runtimes("packed"), dtype="float16"))
    attention = FaultyAttention(half, monkeypatch)
    attention.change = lambda output, keys: output * float("inf")
    for result, reference in zip(embed(half), embed(packed), strict=True):
        np.testing.assert_allclose(result.dense, reference.dense, atol=1e-5)
    assert {*attention.dtypes} == {torch.float16}  # fp32 runs through sdpa


def test_a_result_that_is_not_finite_in_fp32_is_an_error(
    packed: PackedEngine, attention: FaultyAttention
) -> None:
    attention.change = lambda output, keys: output * float("nan")
    with pytest.raises(NotFiniteError):
        embed(packed, Outputs.DENSE)
    with pytest.raises(NotFiniteError):
        packed.run(Outputs.RELEVANCE, packed.encode_pairs(["море"], ["суша"], 1024))


@pytest.mark.parametrize(
    ("error", "translated"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), OutOfMemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), OutOfMemoryError),
        (MemoryError(), OutOfMemoryError),
        (RuntimeError("a shape does not fit"), RuntimeError),
    ],
    ids=["cuda", "cpu", "python", "another error"],
)
def test_out_of_memory_errors_are_translated(
    packed: PackedEngine, attention: FaultyAttention, error: Exception, translated: type[Exception]
) -> None:
    def fail(output: torch.Tensor, keys: Any) -> torch.Tensor:
        raise error

    attention.change = fail
    with pytest.raises(translated):
        embed(packed, Outputs.DENSE)
