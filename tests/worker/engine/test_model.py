"""Packing, packed weights and half precision change no number beyond rounding."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bge_builder.convert import convert
from bge_worker.engine.engine import PackedEngine
from bge_worker.engine.model import Linear, ResidualLinear, pack_weight
from bge_worker.engine.outputs import Outputs
from checkpoints import Shape, write_pair
from conftest import MODELS, settings_in
from fakes.engine import ALL_VECTORS

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("rows", [1, 7, 130])
def test_packed_weights_compute_the_same(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, x, residual = (
        torch.randn(shape, generator=generator)
        for shape in ((64, 96), (64,), (rows, 96), (rows, 64))
    )
    packed = pack_weight(weight)
    assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    assert_close(Linear(packed, bias)(x), Linear(weight, bias)(x))
    expected = ResidualLinear(weight).add_to(residual.clone(), x)
    assert_close(ResidualLinear(packed).add_to(residual, x), expected)


def test_outputs_do_not_depend_on_other_texts_of_the_batch(bench: Any) -> None:
    texts = bench.texts[:16]
    together = bench.embed(texts, ALL_VECTORS)
    order = random.Random(1).sample(range(16), 16)
    shuffled = dict(zip(order, bench.embed([texts[i] for i in order], ALL_VECTORS), strict=True))
    assert_close = partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    for index, text in enumerate(texts):
        (alone,) = bench.embed([text], ALL_VECTORS)
        for result in (together[index], shuffled[index]):
            assert_close(result.dense, alone.dense)
            assert_close(result.colbert, alone.colbert)
            assert result.sparse.indices.tolist() == alone.sparse.indices.tolist()
            assert_close(result.sparse.values, alone.sparse.values)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_half_precision_stays_close_to_single(
    device: Any, tmp_path: Path, texts: list[str]
) -> None:
    """Cosine above 0.9999 for every vector, however this device computes in fp16."""
    texts = texts[:16]
    write_pair(tmp_path / "hub", Shape(384, 12, 1536, layers=3), texts)
    for model in MODELS:
        convert(tmp_path / "hub" / model, tmp_path / model, dtype="float32")
    engines = (
        PackedEngine(settings_in(tmp_path, device="cpu", dtype="float32")),
        PackedEngine(settings_in(tmp_path, device=device, dtype="float16")),
    )
    vectors: list[Any] = [
        engine.run(ALL_VECTORS, engine.encode_texts(texts, 8192)) for engine in engines
    ]
    for single, half in zip(*vectors, strict=True):
        assert single.dense @ half.dense > 0.9999
        assert (single.colbert * half.colbert).sum(axis=1).min() > 0.9999
    logits = [
        engine.run(Outputs.RELEVANCE, engine.encode_pairs(["минимум функции"], texts, 512))
        for engine in engines
    ]
    np.testing.assert_allclose(*logits, rtol=0, atol=0.02)
