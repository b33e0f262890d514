"""Chunks of texts within the limits of a worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_client.chunking import MAX_CHUNK_BYTES, MAX_CHUNK_TEXTS, Chunks, Cost, Limits


def free(text: str) -> Cost:
    return Cost(0, 0)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.text(max_size=400), max_size=600),
    st.integers(1, 300), st.integers(1, 100_000), st.integers(1, 10_000),
)  # fmt: skip
def test_chunks_hold_all_texts_in_order_within_the_limits(
    texts: list[str], max_texts: int, max_bytes: int, max_tokens: int
) -> None:
    limits = Limits(max_texts, max_tokens, max_bytes)
    chunks = list(Chunks(texts, lambda text: Cost(8 * len(text), len(text)), limits))
    assert [text for chunk in chunks for text in chunk] == texts
    for chunk in chunks:
        assert 1 <= len(chunk) <= min(max_texts, MAX_CHUNK_TEXTS)
        if len(chunk) > 1:
            characters = sum(map(len, chunk))
            assert characters <= max_tokens
            assert 8 * characters <= max_bytes
            assert sum(len(text.encode()) for text in chunk) <= MAX_CHUNK_BYTES


@pytest.mark.parametrize("count", [0, 1, MAX_CHUNK_TEXTS, MAX_CHUNK_TEXTS + 1])
def test_single_chunk_is_known_before_it_is_returned(count: int) -> None:
    chunks = Chunks(map(str, range(count)), free)
    assert chunks.is_single() == (count <= MAX_CHUNK_TEXTS)
    assert [text for chunk in chunks for text in chunk] == [str(n) for n in range(count)]


def test_limits_change_between_chunks() -> None:
    chunks = Chunks(map(str, range(500)), free)
    assert not chunks.is_single()
    chunks.limits = Limits(max_texts=100)
    assert [len(chunk) for chunk in chunks] == [100] * 5


def test_texts_before_an_error_of_their_source_come_first() -> None:
    def source() -> Iterator[str]:
        yield from "abc"
        raise KeyError("broken")

    chunks = Chunks(source(), free)
    assert chunks.is_single()
    assert next(chunks) == ["a", "b", "c"]
    with pytest.raises(KeyError, match="broken"):
        next(chunks)
