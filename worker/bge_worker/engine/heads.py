"""The model's outputs, computed from hidden states: dense, sparse, ColBERT, relevance.

Matrix products over all tokens run in the model's dtype; activations, normalisation and everything
of the first tokens in fp32.

The rules are those of FlagEmbedding's `EncoderOnlyEmbedderM3ModelForInference` and transformers'
`XLMRobertaClassificationHead`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
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

NORM_EPSILON = 1e-12  # of `torch.nn.functional.normalize`
TOKEN_BITS = 32


class EmbedHeads(NamedTuple):
    """bge-m3's two linear heads; the dense vector needs none."""

    sparse: Linear  # D → 1
    colbert: Linear  # D → D


class RerankHead(NamedTuple):
    """The classification head with one label, in fp32."""

    dense: Linear  # D → D
    out: Linear  # D → 1


def rerank_outputs(hidden: Tensor, batch: Batch, head: RerankHead) -> dict[str, Tensor]:
    """hidden [S, D] of first tokens → `logits` [N], on the device."""
    first = hidden[: batch.num_texts].float()  # [N, D]
    return {"logits": head.out(torch.tanh(head.dense(first))).squeeze(-1)}


def embed_outputs(
    hidden: Tensor, batch: Batch, outputs: Outputs, heads: EmbedHeads
) -> dict[str, Tensor]:
    """hidden [R, D], or [S, D] if dense vectors are enough → the requested outputs, on the device.

    `dense` [N, D], L2-normalised unless RAW; `weights` [T], zero or more; `colbert` [T, D],
    L2-normalised, and the `norms` [T] before that. All in fp32.
    """
    results: dict[str, Tensor] = {}
    if Outputs.DENSE in outputs:
        of_tokens = outputs & (Outputs.SPARSE | Outputs.COLBERT)
        first = hidden.index_select(0, batch.first_rows) if of_tokens else hidden  # [S, D]
        first = first[: batch.num_texts].float()  # [N, D]
        results["dense"] = first if Outputs.RAW in outputs else normalize(first, dim=-1)
    if Outputs.SPARSE in outputs:
        lexical = heads.sparse.to(hidden.dtype)(hidden).squeeze(-1)  # [R]
        results["weights"] = torch.relu(lexical.float())[: batch.num_tokens]
    if Outputs.COLBERT in outputs:
        projected = heads.colbert.to(hidden.dtype)(hidden)[: batch.num_tokens].float()  # [T, D]
        norms = torch.linalg.vector_norm(projected, dim=-1, keepdim=True)  # [T, 1]
        results["norms"] = norms.squeeze(-1)
        results["colbert"] = projected.div_(norms.clamp_min(NORM_EPSILON))
    return results


class HostCopy(NamedTuple):
    """Tensors on their way to the host. `event` is recorded behind the copies; a CPU has none."""

    tensors: dict[str, Tensor]
    event: torch.cuda.Event | None

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> HostCopy:
        """Start to copy. Does not wait for the device."""
        if not all(tensor.is_cuda for tensor in tensors.values()):
            return cls(tensors, None)
        copies = {
            name: torch.empty_like(tensor, device="cpu", pin_memory=True)
            for name, tensor in tensors.items()
        }
        for name, tensor in tensors.items():
            copies[name].copy_(tensor, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return cls(copies, event)

    def arrays(self) -> dict[str, Array]:
        """Wait for the copies."""
        if self.event is not None:
            self.event.synchronize()
        return {name: tensor.numpy() for name, tensor in self.tensors.items()}


def logits_of_pairs(arrays: Mapping[str, Array]) -> list[float | None]:
    """The arrays of `rerank_outputs` → the logit of each pair, None where it is not finite."""
    return [float(logit) if np.isfinite(logit) else None for logit in arrays["logits"]]


def embeddings_of_texts(
    arrays: Mapping[str, Array], ids: Sequence[Sequence[int]], special_ids: tuple[int, ...]
) -> list[Embedding | None]:
    """The arrays of `embed_outputs` → each text's, None where a number is not finite."""
    lengths = [len(text) for text in ids]
    nothing: Sequence[Any] = [None] * len(ids)
    sparse = colbert = nothing
    if "weights" in arrays:
        sparse = sparse_vectors(arrays["weights"], ids, special_ids)
    if "colbert" in arrays:  # of every token but the first; copied out of page-locked memory
        colbert = [rows[1:].copy() for rows in split_rows(arrays["colbert"], lengths)]
    parts = zip(arrays.get("dense", nothing), sparse, colbert, strict=True)
    finite = finite_texts(arrays, lengths)
    return [Embedding(*part) if ok else None for ok, part in zip(finite, parts, strict=True)]


def finite_texts(arrays: Mapping[str, Array], lengths: Sequence[int]) -> npt.NDArray[np.bool_]:
    """[N]: whether every number of a text is finite. The norm of a ColBERT vector stands for it."""
    finite = np.ones(len(lengths), bool)
    if "dense" in arrays:  # [N, D]
        finite &= np.isfinite(arrays["dense"]).all(axis=1)
    if of_tokens := arrays.keys() & {"weights", "norms"}:  # [T]
        starts = np.cumsum((0, *lengths[:-1]))
        for name in of_tokens:
            finite &= np.logical_and.reduceat(np.isfinite(arrays[name]), starts)
    return finite


def sparse_vectors(
    weights: Array, ids: Sequence[Sequence[int]], special_ids: tuple[int, ...]
) -> list[SparseVector]:
    """weights [T] of all tokens → the sparse vector of each text.

    The maximum over equal tokens; special tokens and zeros are dropped.
    """
    lengths = [len(text) for text in ids]
    tokens = np.fromiter(chain.from_iterable(ids), np.int64, sum(lengths))
    keep = (weights > 0) & ~np.isin(tokens, special_ids)
    # Of all texts at once: a key is the text in the high bits, the token in the low ones.
    keys = (np.repeat(np.arange(len(ids)), lengths)[keep] << TOKEN_BITS) + tokens[keep]
    order = np.argsort(keys, kind="stable")
    unique, starts = np.unique(keys[order], return_index=True)
    values = np.maximum.reduceat(weights[keep][order], starts) if len(starts) else weights[:0]
    bounds = np.searchsorted(unique, np.arange(1, len(ids)) << TOKEN_BITS)
    tokens_of_text = np.split(unique & ((1 << TOKEN_BITS) - 1), bounds)
    return [
        SparseVector(*pair) for pair in zip(tokens_of_text, np.split(values, bounds), strict=True)
    ]
