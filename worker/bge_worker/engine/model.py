"""XLM-RoBERTa without padding: packed token ids in, hidden states out.

The weights are those of a runtime folder (`checkpoint.py`): q, k and v fused into one matrix, the
single token-type row already added to the positions. Layers are post-norm:

    x = norm1(x + out(attention(qkv(x))));  x = norm2(x + down(gelu(up(x))))

The norm before `out` and `down` has added their biases already (`fold_biases` in the builder), so
that one product in place adds to x what its layer adds.

Tuples of tensors, not `nn.Module`s: modules took a third of the host's time to issue a single
query's forward, and on a GPU that query waits for the host.

Shapes: T tokens of all texts, N texts, H heads, D hidden size, d = D / H, F intermediate size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding

from .attention import Attention, Segments
from .packing import Batch, single_row_segments
from .quantization import Int8Linear, Int8ResidualLinear

# On a CPU, up to so many rows, a matrix of at least so many elements is multiplied from the right
# in 0.64 to 0.94 of the time of a multiplication from the left; a smaller one, which fits a cache,
# takes longer. (A single query's forward.)
MAX_ROWS_FROM_RIGHT, MIN_ELEMENTS_FROM_RIGHT = 48, 1 << 20


def multiplies_from_right(x: Tensor, weight: Tensor) -> bool:
    """Whether to multiply few rows from the right, on a CPU: that reads the matrix once.

    From the left, it is repacked first, which reads and writes all of a matrix that no cache holds.
    """
    is_narrow = len(x) <= MAX_ROWS_FROM_RIGHT and x.device.type == "cpu"
    return is_narrow and weight.numel() >= MIN_ELEMENTS_FROM_RIGHT


class Linear(NamedTuple):
    """x [R, in] → [R, out], all in one dtype."""

    weight: Tensor  # [out, in]
    bias: Tensor  # [out]

    def __call__(self, x: Tensor) -> Tensor:
        if multiplies_from_right(x, self.weight):
            return torch.addmm(self.bias.unsqueeze(1), self.weight, x.t()).t().contiguous()
        return torch.addmm(self.bias, x, self.weight.t())

    def to(self, dtype: torch.dtype) -> Linear:
        return Linear(self.weight.to(dtype), self.bias.to(dtype))


class ResidualLinear(NamedTuple):
    """x [R, in] and residual [R, out] → [R, out], their sum, in the residual's memory.

    There is no bias: the residual contains it.
    """

    weight: Tensor  # [out, in]

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        if multiplies_from_right(x, self.weight):
            return residual.add_(torch.mm(self.weight, x.t()).t())
        return torch.addmm(residual, x, self.weight.t(), out=residual)

    def to(self, dtype: torch.dtype) -> ResidualLinear:
        return ResidualLinear(self.weight.to(dtype))


class LayerNorm(NamedTuple):
    """Over the last dimension; PyTorch's kernels compute mean and variance in fp32."""

    weight: Tensor  # [D]
    bias: Tensor  # [D]
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def to(self, dtype: torch.dtype) -> LayerNorm:
        return LayerNorm(self.weight.to(dtype), self.bias.to(dtype), self.eps)


class Layer(NamedTuple):
    """Attention and feed-forward of one layer."""

    num_heads: int
    qkv: Linear | Int8Linear  # D → 3D
    out: ResidualLinear | Int8ResidualLinear  # D → D
    norm1: LayerNorm
    up: Linear | Int8Linear  # D → F
    down: ResidualLinear | Int8ResidualLinear  # F → D
    norm2: LayerNorm

    def all_tokens(self, x: Tensor, segments: Segments, attention: Attention) -> Tensor:
        """x [T, D] → [T, D]. Overwrites x."""
        q, k, v = self.qkv(x).view(len(x), 3, self.num_heads, -1).unbind(1)  # [T, H, d] each
        return self._after_attention(x, attention.run(q, k, v, segments, segments))

    def cls_only(self, x: Tensor, batch: Batch, attention: Attention) -> Tensor:
        """x [T, D] → [N, D]: keys and values of all tokens, everything else of first tokens alone.

        Equal to the first tokens' rows of `all_tokens`.
        """
        hidden_size = x.shape[-1]
        assert isinstance(self.qkv, Linear)  # of the last layer, which is not in int8
        weight, bias = self.qkv
        first = x.index_select(0, batch.first_rows)  # [N, D]
        q = Linear(weight[:hidden_size], bias[:hidden_size])(first)  # [N, D]
        q = q.view(len(first), self.num_heads, -1)  # [N, H, d]
        kv = Linear(weight[hidden_size:], bias[hidden_size:])(x)  # [T, 2D]
        k, v = kv.view(len(x), 2, self.num_heads, -1).unbind(1)  # [T, H, d] each
        queries = single_row_segments(len(first), x.device)
        return self._after_attention(first, attention.run(q, k, v, queries, batch.segments))

    def _after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """x [R, D] and attended [R, H, d] → [R, D]. Overwrites x."""
        x = self.norm1(self.out.add_to(x, attended.flatten(1)))
        hidden = self.up(x)  # [R, F]
        torch.ops.aten.gelu_.default(hidden)  # exact, not the tanh approximation
        return self.norm2(self.down.add_to(x, hidden))

    def to(self, dtype: torch.dtype) -> Layer:
        """A text is recomputed in fp32 with one layer's copy at a time."""
        if self.norm1.weight.dtype == dtype:
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
    word: Tensor  # [vocab_size, D]
    position: Tensor  # [max_position_embeddings, D]
    norm: LayerNorm
    layers: list[Layer]

    def __call__(
        self, batch: Batch, attention: Attention, *, cls_only: bool, dtype: torch.dtype
    ) -> Tensor:
        """Return the last hidden states: [T, D], or [N, D] of the first tokens with `cls_only`.

        Computes in `dtype`, whatever the dtype of the weights.
        """
        x = embedding(batch.input_ids, self.word).to(dtype)  # [T, D]
        x = self.norm.to(dtype)(x.add_(embedding(batch.position_ids, self.position)))
        *body, last = self.layers
        for layer in body:
            x = layer.to(dtype).all_tokens(x, batch.segments, attention)
        if cls_only:
            return last.to(dtype).cls_only(x, batch, attention)
        return last.to(dtype).all_tokens(x, batch.segments, attention)
