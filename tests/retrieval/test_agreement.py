"""Similarity measures against their papers and scipy."""

from __future__ import annotations

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from bge_retrieval.agreement import agreement, kendall_tau, rank_biased_overlap

RANKINGS = st.lists(st.integers(0, 15), unique=True, max_size=12)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("ab", "ba", 0.9),  # X = 0, 2: 0.1 · 0.9 · 1 + 0.81 · 1
        ("abc", "acd", 0.685),  # X = 1, 1, 2: 0.1 · (1 + 0.9/2 + 0.81 · 2/3) + 0.729 · 2/3
        ("a", "ba", 0.45),  # X = 0, 1; X_s = 0: 0.1 · 0.9/2 + 0.81 · 1/2
        ("ab", "acb", 0.82),  # X = 1, 1, 2; X_s = 1: 0.2125 + 0.729 · (1/3 + 1/2)
        ("abc", "abcdef", 1.0),  # equal down to the end of the shorter
        ("", "a", 0.0),
        ("", "", 1.0),
    ],
)
def test_rank_biased_overlap_matches_the_paper(first: str, second: str, expected: float) -> None:
    assert rank_biased_overlap(first, second, 0.9) == pytest.approx(expected, abs=1e-12)


@given(RANKINGS, RANKINGS)
def test_rank_biased_overlap_is_symmetric_and_bounded(first: list[int], second: list[int]) -> None:
    overlap = rank_biased_overlap(first, second)
    assert 0 <= overlap <= 1
    assert overlap == pytest.approx(rank_biased_overlap(second, first), abs=1e-12)
    assert rank_biased_overlap(first, first) == pytest.approx(1)
    if second and not set(first) & set(second):
        assert overlap == 0
    if second:
        assert rank_biased_overlap(first, [-1 - item for item in second]) == 0


@given(RANKINGS, RANKINGS)
def test_kendall_tau_equals_scipy(first: list[int], second: list[int]) -> None:
    common = [item for item in first if item in second]
    if len(common) < 2:
        assert kendall_tau(first, second) is None
        return
    ranks = [second.index(item) for item in common]
    expected = scipy.stats.kendalltau(range(len(common)), ranks, variant="b").statistic
    assert kendall_tau(first, second) == pytest.approx(expected)


def test_agreement_respects_depth_and_counts_an_id_once() -> None:
    measures = agreement(["a", "a", "b", "c"], ["a", "c", "b"], depth=2)  # a b, and a c
    assert (measures.overlap, measures.tau, measures.same_first) == (0.5, None, True)
    assert agreement(["a"], ["b", "a", "c", "d"], depth=10).overlap == 0.25
    assert agreement([], [], depth=10) == (1.0, 1.0, None, True)


def test_overlap_is_none_if_both_rankings_hold_every_candidate() -> None:
    assert agreement([0, 1, 2], [2, 1, 0], depth=10, pool=3).overlap is None
    assert agreement([0, 1], [2, 1], depth=10, pool=3).overlap == 0.5
