"""Outlier channels: smoothing changes no product, and makes their int8 products more exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bge_builder.smoothing import largest_inputs, smooth
from bge_worker.engine.checkpoint import expected_shapes, smoothed_products
from bge_worker.engine.config import Config
from bge_worker.engine.quantization import Int8Linear, Int8Weight, quantize_weight

CONFIG = Config(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    vocab_size=50,
    max_position_embeddings=40,
    layer_norm_eps=1e-5,
    bos_token_id=0,
    pad_token_id=1,
    eos_token_id=2,
    unk_token_id=3,
)
OUTLIER = 7
TEXTS = [[0, 4, 5, 2], [0, *range(6, 30), 2]]


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Random weights; norms write one channel fifty times as large, which products weigh less."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.1
        for name, shape in expected_shapes(CONFIG, "embed").items()
    }
    for name in [name for name in tensors if "norm" in name and name.endswith(".weight")]:
        tensors[name] = torch.ones(CONFIG.hidden_size)
        tensors[name][OUTLIER] = 50
    for name in smoothed_products(CONFIG):
        tensors[f"{name}.weight"][:, OUTLIER] /= 50
    return tensors


def test_the_largest_input_of_each_channel_is_measured(tensors: dict[str, Tensor]) -> None:
    inputs = largest_inputs(CONFIG, "embed", tensors, TEXTS)
    assert [*inputs] == smoothed_products(CONFIG)
    for largest in inputs.values():
        assert largest.argmax() == OUTLIER


def test_smoothing_changes_no_product_and_helps_int8(tensors: dict[str, Tensor]) -> None:
    original = dict(tensors)
    smooth(CONFIG, "embed", tensors, TEXTS)
    x = torch.randn(20, CONFIG.hidden_size, generator=torch.Generator().manual_seed(1))
    x[:, OUTLIER] *= 50
    for name in smoothed_products(CONFIG):
        weight, smoothing = tensors[f"{name}.weight"], tensors[f"{name}.smoothing"]
        expected = x @ original[f"{name}.weight"].t()
        torch.testing.assert_close((x * smoothing) @ weight.t(), expected)
        plain = int8_error(x, original[f"{name}.weight"], torch.ones_like(smoothing))
        assert int8_error(x, weight, smoothing) < 0.5 * plain
    unchanged = original.keys() - {f"{name}.weight" for name in smoothed_products(CONFIG)}
    assert all(torch.equal(tensors[name], original[name]) for name in unchanged)


def int8_error(x: Tensor, weight: Tensor, smoothing: Tensor) -> float:
    product = Int8Linear(
        Int8Weight.of(*quantize_weight(weight)), smoothing, torch.zeros(len(weight))
    )
    expected = (x * smoothing) @ weight.t()
    return float((product(x) - expected).norm())
