"""Outlier channels, moved from activations into weights before both become int8.

A trained encoder has a few channels of hidden states that are many times larger than the others,
and a row's scale is that of its largest number. Dividing a channel by a factor and multiplying its
weights by it changes no product, and takes part of the outlier into the weights, whose scales are
by output (SmoothQuant, Xiao et al. 2023). Inputs that a norm writes have most of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bge_worker.engine.attention import SDPA
from bge_worker.engine.checkpoint import assemble, smoothed_products
from bge_worker.engine.config import Config, Role
from bge_worker.engine.model import Linear
from bge_worker.engine.packing import pack

# How much of an outlier goes into the weights. Of 0.3, 0.5 and 0.7, the last had the smallest error
# on a trained encoder; on random weights, which have no outliers, all are alike.
STRENGTH = 0.7
SMALLEST = 1e-5  # of a channel's largest number


def smooth(
    config: Config, role: Role, tensors: dict[str, Tensor], sequences: Sequence[Sequence[int]]
) -> None:
    """Multiply the weights of `smoothed_products`, and add their `smoothing` [in] for inputs.

    `sequences` are token ids of texts, whose hidden states are measured in fp32.
    """
    for name, largest in largest_inputs(config, role, tensors, sequences).items():
        weight = tensors[f"{name}.weight"].float()  # [out, in]
        channels = largest.clamp_min(SMALLEST)
        factors = channels**STRENGTH / weight.abs().amax(0).clamp_min(SMALLEST) ** (1 - STRENGTH)
        factors /= factors.log().mean().exp()
        tensors |= {f"{name}.weight": weight * factors, f"{name}.smoothing": 1 / factors}


class MeasuredLinear:
    """A product that keeps the largest absolute number of each input channel."""

    def __init__(self, product: Linear) -> None:
        self.largest = torch.zeros(product.weight.shape[1])
        self._product = product

    def __call__(self, x: Tensor) -> Tensor:
        self.largest = torch.maximum(self.largest, x.abs().amax(0))
        return self._product(x)


@torch.inference_mode()
def largest_inputs(
    config: Config, role: Role, tensors: dict[str, Tensor], sequences: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """Return the largest absolute input [in] of each of `smoothed_products`."""
    encoder = assemble(config, role, {name: x.float() for name, x in tensors.items()}).encoder
    layers = [
        layer._replace(qkv=MeasuredLinear(layer.qkv), up=MeasuredLinear(layer.up))  # type: ignore[arg-type]
        for layer in encoder.layers
    ]
    encoder = encoder._replace(layers=layers)
    for ids in sequences:
        batch = pack([ids], config.pad_token_id, torch.device("cpu"))
        encoder(batch, SDPA, cls_only=False, dtype=torch.float32)
    measured = [product for layer in layers for product in (layer.qkv, layer.up)]
    return {
        name: product.largest  # type: ignore[union-attr]
        for name, product in zip(smoothed_products(config), measured, strict=True)
    }
