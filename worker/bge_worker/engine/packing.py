"""Token ids → flat batches, and how many texts of which request go into the next one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .attention import Segments


@dataclass(frozen=True)
class Batch:
    """N texts as one row of T tokens.

    `input_ids` and `position_ids` are [T] int64; `texts` says where each text lies.
    """

    input_ids: Tensor
    position_ids: Tensor
    texts: Segments

    @property
    def first_rows(self) -> Tensor:
        """[N]: the row of each text's first token."""
        return self.texts.cu_seqlens[:-1]


def pack(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> Batch:
    """Lay the token ids of N texts behind one another.

    A position is `pad_id` plus the number of tokens so far that are not `<pad>`; a `<pad>` that
    a text spells out itself stays at `pad_id`: transformers' rule for XLM-RoBERTa.
    """
    lengths = tuple(len(ids) for ids in sequences)
    total = sum(lengths)
    cu_seqlens = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    input_ids = np.fromiter(chain.from_iterable(sequences), np.int64, total)
    counted = input_ids != pad_id
    running = np.concatenate(([0], np.cumsum(counted)))  # [T + 1]
    before = np.repeat(running[cu_seqlens[:-1]], lengths)  # [T]: counted before this text began
    position_ids = (running[1:] - before) * counted + pad_id
    return Batch(
        torch.from_numpy(input_ids).to(device),
        torch.from_numpy(position_ids).to(device),
        Segments(lengths, torch.from_numpy(cu_seqlens).to(device)),
    )


def one_each(n: int, device: torch.device) -> Segments:
    """Segments of n texts of a single row: what is left when only first tokens go on."""
    return Segments((1,) * n, torch.arange(n + 1, dtype=torch.int32, device=device))


def rows_after_first(texts: Segments) -> npt.NDArray[np.int64]:
    """[T − N]: the rows of every token that is not the first of its text."""
    keep = np.ones(sum(texts.lengths), bool)
    starts = np.cumsum((0, *texts.lengths[:-1]))
    keep[starts] = False
    return np.flatnonzero(keep)


def split_rows(array: npt.NDArray[Any], lengths: Iterable[int]) -> list[npt.NDArray[Any]]:
    """Cut [sum(lengths), …] into one array a text."""
    bounds = np.cumsum((0, *lengths))
    return [array[start:end] for start, end in pairwise(bounds)]


def round_robin(waiting: Sequence[Iterable[int]], budget: int) -> list[int]:
    """How many texts each request may put into the next micro-batch.

    `waiting[r]` are the token counts of request r's next texts, in order. One text of each in
    turn, as long as the sum stays within `budget` tokens; a request whose next text does not
    fit is done for this round. The very first text is taken whatever its length, or a text
    longer than the budget would wait for ever.
    """
    taken = [0] * len(waiting)
    turn = [(request, iter(lengths)) for request, lengths in enumerate(waiting)]
    used = 0
    while turn:
        still_open = []
        for request, lengths in turn:
            length = next(lengths, None)
            if length is None or (used and used + length > budget):
                continue
            used += length
            taken[request] += 1
            still_open.append((request, lengths))
        turn = still_open
    return taken
