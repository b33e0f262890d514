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
from torch.nn.functional import pad

from .attention import Segments


@dataclass(frozen=True)
class Batch:
    """N texts as T tokens in R ≥ T rows; rows after the tokens are padding.

    `input_ids` and `position_ids` are [R] int32; `segments` are the texts' rows.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Segments

    @property
    def num_texts(self) -> int:
        return len(self.segments.lengths)

    @property
    def num_tokens(self) -> int:
        return sum(self.segments.lengths)

    @property
    def first_rows(self) -> Tensor:
        """[S]: the row of each text's first token, and padding if the batch has padding."""
        rows = self.segments.cu_seqlens[:-1]
        if len(self.input_ids) == self.num_tokens:
            return rows
        return pad(rows, (0, padded_rows(len(rows)) - len(rows)))

    @classmethod
    def of(cls, buffer: Tensor, lengths: Sequence[int], max_seqlen: int) -> Batch:
        """View a buffer of `pack_on_host`, wherever it is."""
        n = len(lengths) + 1
        cu_seqlens, input_ids, position_ids = buffer.split_with_sizes(
            (n, (len(buffer) - n) // 2, (len(buffer) - n) // 2)
        )
        return cls(input_ids, position_ids, Segments(tuple(lengths), cu_seqlens, max_seqlen))


def pack(
    sequences: Sequence[Sequence[int]],
    pad_token_id: int,
    device: torch.device,
    *,
    has_padding: bool = False,
) -> Batch:
    """Concatenate the token ids of N texts, on a device. Does not wait for it."""
    lengths = [len(ids) for ids in sequences]
    rows = padded_rows(sum(lengths)) if has_padding else None
    buffer = pack_on_host(sequences, pad_token_id, rows)
    if device.type == "cuda":
        buffer = buffer.pin_memory().to(device, non_blocking=True)
    return Batch.of(buffer, lengths, max(lengths))


def padded_rows(rows: int) -> int:
    """Round up by at most a sixteenth, or to a multiple of 4.

    oneDNN compiles each product for its number of rows, for 0.5 ms. Few different numbers occur
    again and again, and it keeps their code.
    """
    step = max(4, (1 << rows.bit_length()) >> 5)
    return -(-rows // step) * step


def pack_on_host(
    sequences: Sequence[Sequence[int]], pad_token_id: int, rows: int | None = None
) -> Tensor:
    """Return `cu_seqlens`, token ids and positions of N texts: [N + 1 + 2R] int32.

    In one buffer, so that one copy brings them to the device. R is `rows`, or the tokens.

    A token's position is `pad_token_id` plus the number of tokens of its text so far that are not
    `<pad>`; a `<pad>` that the text itself holds stays at `pad_token_id` (transformers' rule for
    XLM-RoBERTa). So do the rows after the tokens.
    """
    lengths = [len(ids) for ids in sequences]
    total = sum(lengths)
    rows = total if rows is None else rows
    buffer = np.full(len(lengths) + 1 + 2 * rows, pad_token_id, np.int32)
    cu_seqlens, input_ids, position_ids = np.split(
        buffer, (len(lengths) + 1, len(lengths) + 1 + rows)
    )
    cu_seqlens[0] = 0
    np.cumsum(lengths, out=cu_seqlens[1:])
    input_ids[:total] = np.fromiter(chain.from_iterable(sequences), np.int32, total)
    is_counted = input_ids[:total] != pad_token_id
    running = np.concatenate(([0], np.cumsum(is_counted)))  # [T + 1]
    before = np.repeat(running[cu_seqlens[:-1]], lengths)  # [T]: counted before the text began
    position_ids[:total] += (running[1:] - before) * is_counted
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
