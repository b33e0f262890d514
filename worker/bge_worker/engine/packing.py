"""Token ids → flat batches, and how many texts of each request go into the next micro-batch."""

from __future__ import annotations

from collections import deque
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

    `input_ids` and `position_ids` are [T] int32; `segments` are the texts' rows.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Segments

    @property
    def first_rows(self) -> Tensor:
        """[N]: the row of each text's first token."""
        return self.segments.cu_seqlens[:-1]

    @classmethod
    def of(cls, buffer: Tensor, lengths: Sequence[int], max_seqlen: int) -> Batch:
        """View a buffer of `pack_on_host`, wherever it is."""
        total = sum(lengths)
        input_ids, position_ids, cu_seqlens = buffer.split_with_sizes(
            (total, total, len(lengths) + 1)
        )
        return cls(input_ids, position_ids, Segments(tuple(lengths), cu_seqlens, max_seqlen))


def pack(sequences: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> Batch:
    """Concatenate the token ids of N texts, on a device. Does not wait for it."""
    buffer = pack_on_host(sequences, pad_token_id)
    if device.type == "cuda":
        buffer = buffer.pin_memory().to(device, non_blocking=True)
    lengths = [len(ids) for ids in sequences]
    return Batch.of(buffer, lengths, max(lengths))


def pack_on_host(sequences: Sequence[Sequence[int]], pad_token_id: int) -> Tensor:
    """Return token ids, positions and `cu_seqlens` of N texts: [2T + N + 1] int32.

    In one buffer, so that one copy brings them to the device.

    A token's position is `pad_token_id` plus the number of tokens of its text so far that are not
    `<pad>`; a `<pad>` that the text itself holds stays at `pad_token_id` (transformers' rule for
    XLM-RoBERTa).
    """
    lengths = [len(ids) for ids in sequences]
    total = sum(lengths)
    buffer = np.zeros(2 * total + len(lengths) + 1, np.int32)
    input_ids, position_ids, cu_seqlens = np.split(buffer, (total, 2 * total))
    np.cumsum(lengths, out=cu_seqlens[1:])
    input_ids[:] = np.fromiter(chain.from_iterable(sequences), np.int32, total)
    is_counted = input_ids != pad_token_id
    running = np.concatenate(([0], np.cumsum(is_counted)))  # [T + 1]
    before = np.repeat(running[cu_seqlens[:-1]], lengths)  # [T]: counted before the text began
    position_ids[:] = (running[1:] - before) * is_counted + pad_token_id
    return torch.from_numpy(buffer)


def single_row_segments(n: int, device: torch.device) -> Segments:
    """Segments of n texts of one row each: the queries when only first tokens are computed."""
    return Segments((1,) * n, torch.arange(n + 1, dtype=torch.int32, device=device), 1)


def split_rows(array: npt.NDArray[Any], lengths: Iterable[int]) -> list[npt.NDArray[Any]]:
    """Split [sum(lengths), …] into one array per text."""
    bounds = np.cumsum((0, *lengths))
    return [array[start:end] for start, end in pairwise(bounds)]


def round_robin(waiting: Sequence[Iterable[int]], budget: int) -> list[int]:
    """How many texts each request puts into the next micro-batch.

    `waiting[r]` are the token counts of request r's next texts, in order. Requests take turns, one
    text each, while the sum stays within `budget` tokens; a request whose next text does not fit
    gets no further turn. The very first text is taken whatever its length: otherwise a text longer
    than the budget would wait for ever.
    """
    counts = [0] * len(waiting)
    turns = deque((request, iter(lengths)) for request, lengths in enumerate(waiting))
    used = 0
    while turns:
        request, lengths = turns.popleft()
        length = next(lengths, None)
        if length is not None and (not used or used + length <= budget):
            used += length
            counts[request] += 1
            turns.append((request, lengths))
    return counts
