"""XLM-RoBERTa, padding-free, in one file: packed token ids in, hidden states out.

The weights are those of a runtime folder (`checkpoint.py`): q, k and v fused into one matrix,
the single token-type row already added to the positions. Post-norm layers:

    x = norm1(x + out(attention(qkv(x))));  x = norm2(x + down(gelu(up(x))))

Shapes: T tokens of all texts, N texts, H heads, D model width, d = D / H, F feed-forward width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, layer_norm

from .attention import Attention, Segments
from .packing import Batch, one_each

FEW_ROWS = 16  # measured on a CPU: twice as fast at 3 rows, level at about 32 (see `linear`)


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


class Linear(nn.Module):
    """x [·, in] → [·, out], in the dtype of x: an fp32 input is how a text is redone in fp32."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(outputs), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [R, in], weight [out, in], bias [out] → [R, out].

    On a CPU, few rows are multiplied from the right, because there the matrix is read once;
    from the left it is repacked first, which takes longer than the product itself.
    """
    if x.device.type == "cpu" and len(x) <= FEW_ROWS:
        return torch.addmm(bias.unsqueeze(1), weight, x.t()).t().contiguous()
    return torch.addmm(bias, x, weight.t())


class LayerNorm(nn.Module):
    """Over the last dimension; PyTorch's kernels take mean and variance in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(width), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return layer_norm(x, weight.shape, weight, bias, self.eps)


class Layer(nn.Module):
    """Attention and feed-forward of one layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)
        self.norm1 = LayerNorm(config.width, config.layer_norm_eps)
        self.up = Linear(config.width, config.feed_forward)
        self.down = Linear(config.feed_forward, config.width)
        self.norm2 = LayerNorm(config.width, config.layer_norm_eps)

    def forward(self, x: Tensor, texts: Segments, attention: Attention) -> Tensor:
        """x [T, D] → [T, D]."""
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1).unbind(1)  # [T, H, d] each
        return self._finish(x, attention.run(q, k, v, texts, texts))

    def first_only(self, x: Tensor, batch: Batch, attention: Attention) -> Tensor:
        """x [T, D] → [N, D]: keys and values of every token, the rest for first tokens alone.

        The same matrices cut in two, so the result is the first rows of `forward`.
        """
        width = x.shape[-1]
        weight, bias = self.qkv.weight.to(x.dtype), self.qkv.bias.to(x.dtype)
        first = x[batch.first_rows]  # [N, D]
        q = linear(first, weight[:width], bias[:width])  # [N, D]
        q = q.view(len(first), self.heads, -1)  # [N, H, d]
        kv = linear(x, weight[width:], bias[width:])  # [T, 2D]
        k, v = kv.view(len(x), 2, self.heads, -1).unbind(1)  # [T, H, d] each
        queries = one_each(len(first), x.device)
        return self._finish(first, attention.run(q, k, v, queries, batch.texts))

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """x [R, D] and attended [R, H, d] → [R, D]."""
        x = self.norm1(self.out(attended.flatten(1)).add_(x))
        hidden = self.up(x)  # [R, F]
        torch.ops.aten.gelu_(hidden)  # exact, not the tanh approximation
        return self.norm2(self.down(hidden).add_(x))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """The whole encoder. Build under `torch.device("meta")`, then load with `assign=True`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        rows = config.position_offset + config.positions
        self.word = nn.Parameter(torch.empty(config.vocab_size, config.width), requires_grad=False)
        self.position = nn.Parameter(torch.empty(rows, config.width), requires_grad=False)
        self.norm = LayerNorm(config.width, config.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(
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
        x = self.norm(x.add_(embedding(batch.position_ids, self.position)))
        *body, last = self.layers
        for layer in body:
            x = layer(x, batch.texts, attention)
        if first_only:
            return last.first_only(x, batch, attention)  # type: ignore[no-any-return, operator]
        return last(x, batch.texts, attention)  # type: ignore[no-any-return]
