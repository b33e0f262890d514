"""What is read off the hidden states: dense, sparse, ColBERT, relevance.

Matrix products over all tokens run in the model's dtype; activations, normalisation and
everything of the first tokens in fp32.

FlagEmbedding's `EncoderOnlyEmbedderM3ModelForInference` and transformers'
`XLMRobertaClassificationHead` are the source of every rule here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from .model import Linear


class SparseVector(NamedTuple):
    """`indices` [K] int64 token ids, ascending and unique; `values` [K] float32, above zero."""

    indices: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]


class EmbedHeads(NamedTuple):
    """bge-m3's two linear heads; the dense vector has none."""

    sparse: Linear  # D → 1
    colbert: Linear  # D → D


class RerankHead(NamedTuple):
    """The classification head with one label."""

    dense: Linear  # D → D
    out: Linear  # D → 1


def dense(first: Tensor) -> Tensor:
    """first [N, D] → [N, D], L2-normalised."""
    return normalize(first.float(), dim=-1)


def token_weights(hidden: Tensor, head: EmbedHeads) -> Tensor:
    """hidden [T, D] → [T]: how much each token counts, zero or more."""
    return torch.relu(head.sparse.to(hidden.dtype)(hidden).float()).squeeze(-1)


def sparse(
    weights: npt.NDArray[np.float32], ids: npt.NDArray[np.int64], special_ids: tuple[int, ...]
) -> SparseVector:
    """weights [t], ids [t] of one text → its sparse vector.

    The maximum over equal tokens; special tokens and zeros are dropped.
    """
    kept = (weights > 0) & ~np.isin(ids, special_ids)
    indices, place = np.unique(ids[kept], return_inverse=True)
    values = np.zeros(len(indices), np.float32)
    np.maximum.at(values, place, weights[kept])
    return SparseVector(indices, values)


def colbert(hidden: Tensor, head: EmbedHeads) -> Tensor:
    """hidden [R, D] of tokens that are not first → [R, D], each row L2-normalised."""
    return normalize(head.colbert.to(hidden.dtype)(hidden).float(), dim=-1)


def relevance(first: Tensor, head: RerankHead) -> Tensor:
    """first [N, D] → [N] logits."""
    dense, out = head.dense.to(torch.float32), head.out.to(torch.float32)
    return out(torch.tanh(dense(first.float()))).squeeze(-1)
