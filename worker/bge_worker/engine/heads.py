"""The model's outputs, computed from hidden states: dense, sparse, ColBERT, relevance.

Matrix products over all tokens run in the model's dtype; activations, normalisation and everything
of the first tokens in fp32.

The rules are those of FlagEmbedding's `EncoderOnlyEmbedderM3ModelForInference` and transformers'
`XLMRobertaClassificationHead`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from .model import Linear
from .outputs import Embedding, Outputs, SparseVector
from .packing import Batch, split_rows

Array = npt.NDArray[np.float32]


class EmbedHeads(NamedTuple):
    """bge-m3's two linear heads; the dense vector needs none."""

    sparse: Linear  # D → 1
    colbert: Linear  # D → D


class RerankHead(NamedTuple):
    """The classification head with one label."""

    dense: Linear  # D → D
    out: Linear  # D → 1


def apply_rerank_head(hidden: Tensor, batch: Batch, head: RerankHead) -> list[float | None]:
    """hidden [T, D] or [N, D] → the logit of each pair, None where it is not finite."""
    dense, out = head.dense.to(torch.float32), head.out.to(torch.float32)
    first = _first_tokens(hidden, batch).float()  # [N, D]
    (logits,) = to_numpy([out(torch.tanh(dense(first))).squeeze(-1)])  # [N]
    return [float(logit) if np.isfinite(logit) else None for logit in logits]


def apply_embed_heads(
    hidden: Tensor,
    batch: Batch,
    ids: Sequence[Sequence[int]],
    outputs: Outputs,
    heads: EmbedHeads,
    special_ids: tuple[int, ...],
) -> list[Embedding | None]:
    """hidden [T, D], or [N, D] if dense vectors are enough → the outputs of each text.

    Dense (unless RAW) and ColBERT vectors are L2-normalised, lexical weights are zero or more.
    None for a text with a number that is not finite.
    """
    on_device: dict[Outputs, Tensor] = {}
    if Outputs.DENSE in outputs:
        first = _first_tokens(hidden, batch).float()  # [N, D]
        on_device[Outputs.DENSE] = first if Outputs.RAW in outputs else normalize(first, dim=-1)
    if Outputs.SPARSE in outputs:
        lexical = heads.sparse.to(hidden.dtype)(hidden).squeeze(-1)  # [T]
        on_device[Outputs.SPARSE] = torch.relu(lexical.float())
    if Outputs.COLBERT in outputs:
        projected = heads.colbert.to(hidden.dtype)(hidden)  # [T, D]
        on_device[Outputs.COLBERT] = normalize(projected.float(), dim=-1)
    arrays = dict(zip(on_device, to_numpy([*on_device.values()]), strict=True))
    lengths = batch.segments.lengths
    nothing: Sequence[Any] = [None] * len(lengths)
    dense_vectors = weights = colbert_vectors = nothing
    if Outputs.DENSE in arrays:
        dense_vectors = list(arrays[Outputs.DENSE])
    if Outputs.SPARSE in arrays:
        weights = split_rows(arrays[Outputs.SPARSE], lengths)
    if Outputs.COLBERT in arrays:  # of every token but the first
        colbert_vectors = [rows[1:] for rows in split_rows(arrays[Outputs.COLBERT], lengths)]
    return [
        _embedding(*parts, special_ids)
        for parts in zip(dense_vectors, weights, colbert_vectors, ids, strict=True)
    ]


def _first_tokens(hidden: Tensor, batch: Batch) -> Tensor:
    """hidden [T, D] or [N, D] → [N, D]. A text has at least two tokens, so N < T."""
    first_only = len(hidden) == len(batch.segments.lengths)
    return hidden if first_only else hidden.index_select(0, batch.first_rows)


def _embedding(
    dense: Array | None,
    weights: Array | None,
    colbert: Array | None,
    ids: Sequence[int],
    special_ids: tuple[int, ...],
) -> Embedding | None:
    arrays = [array for array in (dense, weights, colbert) if array is not None]
    if not all(np.isfinite(array).all() for array in arrays):
        return None
    vector = None if weights is None else sparse(weights, np.array(ids), special_ids)
    return Embedding(dense, vector, colbert)


def sparse(
    weights: Array, ids: npt.NDArray[np.int64], special_ids: tuple[int, ...]
) -> SparseVector:
    """weights [t] and ids [t] of one text → its sparse vector.

    The maximum over equal tokens; special tokens and zeros are dropped.
    """
    keep = (weights > 0) & ~np.isin(ids, special_ids)
    indices, index_of_token = np.unique(ids[keep], return_inverse=True)
    values = np.zeros(len(indices), np.float32)
    np.maximum.at(values, index_of_token, weights[keep])
    return SparseVector(indices, values)


def to_numpy(tensors: Sequence[Tensor]) -> list[npt.NDArray[Any]]:
    """Copy tensors to the host, all at once. This is where the host waits for the device."""
    if not all(tensor.is_cuda for tensor in tensors):
        return [tensor.numpy() for tensor in tensors]
    copies = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream().synchronize()
    return [copy.numpy() for copy in copies]
