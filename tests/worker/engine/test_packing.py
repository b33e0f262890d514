"""Flat batches of token ids, and the cut of micro-batches."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaEmbeddings

from bge_worker.engine.packing import pack, padded_rows, round_robin, split_rows

CPU = torch.device("cpu")
PAD = 1
TEXT = st.lists(st.integers(0, 5), min_size=1, max_size=9)  # a text may hold <pad>


@given(st.lists(TEXT, min_size=1, max_size=6))
def test_pack_keeps_tokens_and_has_the_positions_of_transformers(texts: list[list[int]]) -> None:
    batch = pack(texts, PAD, CPU, has_padding=True)
    lengths = [len(text) for text in texts]
    assert batch.segments.lengths == tuple(lengths)
    assert batch.segments.max_seqlen == max(lengths)
    assert batch.segments.cu_seqlens.tolist() == [0, *np.cumsum(lengths)]
    total = sum(lengths)
    input_ids, position_ids = batch.input_ids.numpy(), batch.position_ids.numpy()
    assert [rows.tolist() for rows in split_rows(input_ids[:total], lengths)] == texts
    assert len(input_ids) == len(position_ids) == padded_rows(total)
    assert (input_ids[total:] == PAD).all()
    assert (position_ids[total:] == PAD).all()
    first_rows = batch.first_rows[: len(texts)]
    assert batch.input_ids[first_rows].tolist() == [text[0] for text in texts]
    for text, positions in zip(texts, split_rows(position_ids[:total], lengths), strict=True):
        ids = torch.tensor([text])
        reference = XLMRobertaEmbeddings.create_position_ids_from_input_ids(ids, PAD)
        assert positions.tolist() == reference[0].tolist()


def test_rows_are_padded_by_a_sixteenth_at_most_to_few_different_numbers() -> None:
    padded = [padded_rows(rows) for rows in range(1, 2049)]
    assert all(rows <= other < rows + max(4, rows / 16) for rows, other in enumerate(padded, 1))
    assert len(set(padded)) == 96


WAITING = st.lists(st.lists(st.integers(1, 50), max_size=8), max_size=6)


@given(WAITING, st.integers(1, 100))
def test_round_robin_stays_within_the_budget(waiting: list[list[int]], budget: int) -> None:
    counts = round_robin(waiting, budget)
    total = sum(sum(lengths[:count]) for lengths, count in zip(waiting, counts, strict=True))
    assert total <= budget or sum(counts) == 1
    assert sum(counts) >= any(waiting)  # at least one text is taken
    for lengths, count in zip(waiting, counts, strict=True):  # the next text does not fit
        assert count == len(lengths) or total + lengths[count] > budget


def test_round_robin_takes_one_text_of_each_request_in_turn() -> None:
    assert round_robin([[10] * 100, [10], [10, 10]], budget=60) == [3, 1, 2]
    assert round_robin([[10] * 100, [51], [1]], budget=60) == [5, 0, 1]


def test_a_text_longer_than_the_budget_is_taken_alone() -> None:
    assert round_robin([[500, 1], [1]], budget=100) == [1, 0]
