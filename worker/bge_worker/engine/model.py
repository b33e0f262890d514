"""XLM-RoBERTa without padding: packed token ids in, hidden states out.

The weights are those of a runtime folder (`checkpoint.py`): q, k and v fused into one matrix, the
single token-type row already added to the positions. Layers are post-norm:

    x = norm1(x + out(attention(qkv(x))));  x = norm2(x + down(gelu(up(x))))

The norm before `out` and `down` has added their biases already (`fold_biases` in the builder), so
that one product in place adds to x what its layer adds.

Tuples of tensors, not `nn.Module`s: modules took a third of the host's time to issue a single
query's forward, and on a GPU that query waits for the host.

Shapes: T tokens of all texts, N texts, R ≥ T and S ≥ N rows with the padding of a batch, H heads,
D hidden size, d = D / H, F intermediate size.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import embedding

from .attention import Attention, Segments
from .packing import Batch, single_row_segments
from .quantization import Int8Linear, Int8ResidualLinear

# On a CPU, the rows that pass through a feed-forward together: its hidden states stay in a cache.
CPU_BLOCK_ROWS = 512


class Linear(NamedTuple):
    """x [R, in] → [R, out], all in one dtype."""

    weight: Tensor  # [out, in], or packed
    bias: Tensor  # [out]

    def __call__(self, x: Tensor) -> Tensor:
        if self.weight.is_mkldnn:
            return packed_product(x, self.weight, self.bias)
        return torch.addmm(self.bias, x, self.weight.t())

    def to(self, dtype: torch.dtype) -> Linear:
        return Linear(self.weight.to(dtype), self.bias.to(dtype))


class ResidualLinear(NamedTuple):
    """x [R, in] and residual [R, out] → [R, out], their sum, in the residual's memory.

    There is no bias: the residual contains it.
    """

    weight: Tensor  # [out, in], or packed

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        if self.weight.is_mkldnn:
            return residual.add_(packed_product(x, self.weight, None))
        return torch.addmm(residual, x, self.weight.t(), out=residual)

    def to(self, dtype: torch.dtype) -> ResidualLinear:
        return ResidualLinear(self.weight.to(dtype))


def packs_weights(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `pack_weight` pays. oneDNN's products also want padded rows (`padded_rows`)."""
    return device.type == "cpu" and dtype == torch.float32 and torch.cpu._is_avx2_supported()


def pack_weight(weight: Tensor) -> Tensor:
    """Copy a weight [out, in] of fp32 into the layout of this processor's products.

    oneDNN then uses AVX-512 on every processor that has it, MKL (`addmm`) on Intel's alone: on an
    AMD EPYC the products take less than half the time. Few rows, whose time is that of reading the
    weight, gain everywhere: MKL repacks it in each call.
    """
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight, None))


def packed_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], ""))


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
        """x [R, D] → [R, D]. Overwrites x."""
        q, k, v = self._projections(x)
        return self._after_attention(x, attention.run(q, k, v, segments, segments))

    def cls_only(self, x: Tensor, batch: Batch, attention: Attention) -> Tensor:
        """x [R, D] → [S, D]: everything after the projections of first tokens alone.

        Equal to the first tokens' rows of `all_tokens`.
        """
        q, k, v = self._projections(x)
        rows = batch.first_rows  # [S]
        queries = single_row_segments(batch.num_texts, x.device)
        attended = attention.run(q.index_select(0, rows), k, v, queries, batch.segments)
        return self._after_attention(x.index_select(0, rows), attended)

    def _projections(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [R, D] → q, k and v [R, H, d]."""
        return self.qkv(x).view(len(x), 3, self.num_heads, -1).unbind(1)

    def _after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """x [R, D] and attended [R, H, d] → [R, D]. Overwrites x."""
        attended = attended.flatten(1)
        if x.device.type != "cpu" or len(x) <= CPU_BLOCK_ROWS:
            return self._feed_forward(x, attended)
        for start in range(0, len(x), CPU_BLOCK_ROWS):
            rows = slice(start, start + CPU_BLOCK_ROWS)
            x[rows] = self._feed_forward(x[rows], attended[rows])
        return x

    def _feed_forward(self, x: Tensor, attended: Tensor) -> Tensor:
        """x [R, D] and attended [R, D] → [R, D]. Overwrites x."""
        x = self.norm1(self.out.add_to(x, attended))
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
        """Return the last hidden states: [R, D], or [S, D] of the first tokens with `cls_only`.

        Computes in `dtype`, whatever the dtype of the weights.
        """
        x = embedding(batch.input_ids, self.word).to(dtype)  # [R, D]
        x = self.norm.to(dtype)(x.add_(embedding(batch.position_ids, self.position)))
        *body, last = self.layers
        for layer in body:
            x = layer.to(dtype).all_tokens(x, batch.segments, attention)
        if cls_only:
            return last.to(dtype).cls_only(x, batch, attention)
        return last.to(dtype).all_tokens(x, batch.segments, attention)
