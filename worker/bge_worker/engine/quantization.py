"""int8 products on a CPU: weights by output channel, activations by row.

A row is a token, so no text depends on the texts beside it, as it would with one scale for a whole
micro-batch. Everything between two products is in fp32.

oneDNN multiplies unsigned activations by signed weights, so a row is shifted by 128; for signed
ones it has no fast kernel. Its result has the weights' scales; the row's scale is applied with the
bias, or with the residual, in one pass.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

LEVELS = 127  # of each sign
SHIFT = 128
SMALLEST_SCALE = 1e-30  # of an output whose weights are zero


class Int8Linear(NamedTuple):
    """x [R, in] → [R, out], both fp32."""

    weight: Int8Weight
    smoothing: Tensor  # [in] fp32: factors of the input's channels, divided out of the weight
    bias: Tensor  # [out] fp32

    def __call__(self, x: Tensor) -> Tensor:
        products, scales = self.weight.multiply(x * self.smoothing)
        return torch.addcmul(self.bias, products, scales, out=products)

    def to(self, dtype: torch.dtype) -> Int8Linear:
        """Computes in fp32 whatever the dtype."""
        return self


class Int8ResidualLinear(NamedTuple):
    """x [R, in] and residual [R, out] → [R, out], their sum, in the residual's memory."""

    weight: Int8Weight

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        products, scales = self.weight.multiply(x)
        return torch.addcmul(residual, products, scales, out=residual)

    def to(self, dtype: torch.dtype) -> Int8ResidualLinear:
        return self


class Int8Weight(NamedTuple):
    """A matrix [out, in] in the layout of this processor's products, and its scales [out]."""

    packed: Tensor
    scales: Tensor
    zero_points: Tensor  # [out] int32, all zero

    @classmethod
    def of(cls, weight: Tensor, scales: Tensor) -> Int8Weight:
        """Pack int8 weights [out, in]."""
        packed = torch.ops.onednn.qlinear_prepack(weight, None)
        return cls(packed, scales, torch.zeros(len(scales), dtype=torch.int32))

    def multiply(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [R, in] fp32 → products [R, out] fp32 and the scale [R, 1] of each of their rows."""
        rows, scales = quantize_rows(x)
        products = torch.ops.onednn.qlinear_pointwise.default(
            *(rows, 1.0, SHIFT, self.packed, self.scales, self.zero_points),
            *(None, 1.0, 0, torch.float32, "none", [], ""),  # no bias, no post-operation
        )
        return cast(Tensor, products), scales


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [R, C] fp32 → uint8 [R, C], shifted by `SHIFT`, and scales [R, 1].

    Each step is the fastest of its kind in PyTorch: `aminmax` takes twenty times as long as this
    reduction, and a cast to uint8 five times as long as one to int8.
    """
    scales = x.abs().amax(1, keepdim=True).mul_(1 / LEVELS)  # 0 of a row of zeros, as its products
    rows = torch.div(x, scales).round_().to(torch.int8)
    return rows.view(torch.uint8).bitwise_xor_(SHIFT), scales


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [out, in] → int8 [out, in] and scales [out] fp32, by output channel."""
    weight = weight.float()
    scales = weight.abs().amax(1).div_(LEVELS).clamp_min_(SMALLEST_SCALE)
    return (weight / scales.unsqueeze(1)).round_().clamp_(-LEVELS, LEVELS).to(torch.int8), scales
