"""XLM-RoBERTa, padding-free, in one file: packed token ids in, hidden states out.

The weights are those of a runtime folder (`checkpoint.py`): q, k and v fused into one matrix,
the single token-type row already added to the positions. Post-norm layers:

    x = norm1(x + out(attention(qkv(x))));  x = norm2(x + down(gelu(up(x))))

Tuples of tensors and not `nn.Module`s: those took a third of the time that the host needs to issue
a lone query's forward, and on a GPU that is what such a query waits for.

Shapes: T tokens of all texts, N texts, H heads, D model width, d = D / H, F feed-forward width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding

from .attention import Attention, Segments
from .packing import Batch, one_each

# On a CPU (see `Linear`): of a query's forward, matrices of the second size take 0.64 to 0.94 of
# the time from the right up to so many rows; those of 384 columns, which a cache holds, more.
FEW_ROWS, LARGE = 48, 1 << 20


@dataclass(frozen=True)
class Config:
    """The architecture of one checkpoint; `positions` counts usable ones (8192 for bge-m3)."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    feed_forward: int
    positions: int
    layer_norm_eps: float
    bos_id: int
    pad_id: int
    eos_id: int
    unk_id: int

    @property
    def position_offset(self) -> int:
        return self.pad_id + 1

    @property
    def special_ids(self) -> tuple[int, ...]:
        return (self.bos_id, self.pad_id, self.eos_id, self.unk_id)


class Linear(NamedTuple):
    """x [R, in] → [R, out], all in one dtype."""

    weight: Tensor  # [out, in]
    bias: Tensor  # [out]

    def __call__(self, x: Tensor) -> Tensor:
        """On a CPU, few rows are multiplied from the right, because there the matrix is read once;
        from the left it is repacked first, and one that no cache holds is read and written for it.
        """
        if len(x) <= FEW_ROWS and self.weight.numel() >= LARGE and x.device.type == "cpu":
            return torch.addmm(self.bias.unsqueeze(1), self.weight, x.t()).t().contiguous()
        return torch.addmm(self.bias, x, self.weight.t())

    def to(self, dtype: torch.dtype) -> Linear:
        return Linear(self.weight.to(dtype), self.bias.to(dtype))


class LayerNorm(NamedTuple):
    """Over the last dimension; PyTorch's kernels take mean and variance in fp32."""

    weight: Tensor  # [D]
    bias: Tensor  # [D]
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def to(self, dtype: torch.dtype) -> LayerNorm:
        return LayerNorm(self.weight.to(dtype), self.bias.to(dtype), self.eps)


class Layer(NamedTuple):
    """Attention and feed-forward of one layer."""

    heads: int
    qkv: Linear  # D → 3D
    out: Linear  # D → D
    norm1: LayerNorm
    up: Linear  # D → F
    down: Linear  # F → D
    norm2: LayerNorm

    def every_token(self, x: Tensor, texts: Segments, attention: Attention) -> Tensor:
        """x [T, D] → [T, D]."""
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1).unbind(1)  # [T, H, d] each
        return self._finish(x, attention.run(q, k, v, texts, texts))

    def first_only(self, x: Tensor, batch: Batch, attention: Attention) -> Tensor:
        """x [T, D] → [N, D]: keys and values of every token, the rest for first tokens alone.

        The same matrices cut in two, so the result is the first rows of `every_token`.
        """
        width = x.shape[-1]
        weight, bias = self.qkv
        first = x[batch.first_rows]  # [N, D]
        q = Linear(weight[:width], bias[:width])(first)  # [N, D]
        q = q.view(len(first), self.heads, -1)  # [N, H, d]
        kv = Linear(weight[width:], bias[width:])(x)  # [T, 2D]
        k, v = kv.view(len(x), 2, self.heads, -1).unbind(1)  # [T, H, d] each
        queries = one_each(len(first), x.device)
        return self._finish(first, attention.run(q, k, v, queries, batch.texts))

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """x [R, D] and attended [R, H, d] → [R, D]."""
        x = self.norm1(self.out(attended.flatten(1)).add_(x))
        hidden = self.up(x)  # [R, F]
        torch.ops.aten.gelu_.default(hidden)  # exact, not the tanh approximation
        return self.norm2(self.down(hidden).add_(x))

    def to(self, dtype: torch.dtype) -> Layer:
        """The same in another dtype: a text is redone in fp32 with one layer's copy at a time."""
        if self.qkv.weight.dtype == dtype:
            return self
        return self._replace(
            qkv=self.qkv.to(dtype),
            out=self.out.to(dtype),
            norm1=self.norm1.to(dtype),
            up=self.up.to(dtype),
            down=self.down.to(dtype),
            norm2=self.norm2.to(dtype),
        )


class Encoder(NamedTuple):
    """The whole encoder."""

    word: Tensor  # [vocabulary, D]
    position: Tensor  # [position_offset + positions, D]
    norm: LayerNorm
    layers: list[Layer]

    def __call__(
        self,
        batch: Batch,
        attention: Attention,
        *,
        first_only: bool = False,
        dtype: torch.dtype,
    ) -> Tensor:
        """Hidden states of the last layer: [T, D], or [N, D] of the first tokens alone.

        `dtype` is what to compute in, whatever the weights are stored in.
        """
        x = embedding(batch.input_ids, self.word).to(dtype)  # [T, D]
        x = self.norm.to(dtype)(x.add_(embedding(batch.position_ids, self.position)))
        *body, last = self.layers
        for layer in body:
            x = layer.to(dtype).every_token(x, batch.texts, attention)
        if first_only:
            return last.to(dtype).first_only(x, batch, attention)
        return last.to(dtype).every_token(x, batch.texts, attention)
