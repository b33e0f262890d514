"""A long document is read in overlapping windows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_worker.engine.engine import Engine
from bge_worker.errors import TooLargeError, ValidationError
from bge_worker.serving.requests import RerankRequest
from bge_worker.serving.service import Service
from bge_worker.serving.windows import split_documents
from fakes.serving import answer

FILLER, ANSWER, QUERY = "данные и лекция ", "градиентный спуск ищет минимум", "минимум спуск"


@given(length=st.integers(1, 400), chunks=st.integers(2, 6), overlap=st.integers(0, 20))
def test_windows_cover_a_document_and_fit_the_pair(
    length: int, chunks: int, overlap: int, packed: Engine
) -> None:
    tokenizer = packed.tokenizer("rerank")
    words = [f"слово{index} " for index in range(length)]
    request = RerankRequest(
        "q", ["".join(words)], max_length=64, max_chunks_per_doc=chunks, overlap_tokens=overlap
    )
    split = split_documents(request, tokenizer, 8192, 10**6)
    assert split.windows is not None
    assert len(split.texts) <= chunks
    assert set(split.windows.owners) == {0}
    document, end = request.texts[0], 0
    for text in split.texts:
        start = document.index(text)  # every word is different
        assert not document[end:start].strip()
        end = start + len(text)
    assert split.windows.unread or not document[end:].strip()
    encoded = tokenizer.encode_pairs(["q"], split.texts, 64)
    assert all(pair.untruncated_length <= 64 + 2 for pair in encoded)


def test_a_document_whose_answer_is_far_behind_ranks_first(packed_service: Service) -> None:
    far = FILLER * 1000 + ANSWER + FILLER
    body = {"query": QUERY, "documents": [FILLER * 1500, far, "море"], "return_documents": True}
    near = answer(packed_service, body)
    whole = answer(packed_service, {**body, "max_chunks_per_doc": 20})
    assert near["truncated"] == [0, 1]
    assert whole["truncated"] == []
    assert whole["results"][0]["index"] == 1
    assert whole["results"][0]["document"] == {"text": far}
    assert [result["index"] for result in whole["results"]] != [r["index"] for r in near["results"]]
    assert whole["usage"]["prompt_tokens"] > near["usage"]["prompt_tokens"]


def test_windows_have_the_limit_of_a_requests_tokens(packed: Engine) -> None:
    request = RerankRequest("q", [FILLER * 100] * 50, max_length=64, max_chunks_per_doc=9)
    request = replace(request, overlap_tokens=0)
    with pytest.raises(TooLargeError, match=r"at most 1000 tokens .* in the first 2 of 50"):
        split_documents(request, packed.tokenizer("rerank"), 8192, 1000)


def test_the_end_of_a_document_that_no_window_reads_is_reported(packed_service: Service) -> None:
    body = {"query": "q", "documents": ["a", FILLER * 1500], "max_chunks_per_doc": 2}
    assert answer(packed_service, body)["truncated"] == [1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"overlap_tokens": 500, "max_length": 100}, "`overlap_tokens` must be below 94"),
        ({"truncate": False, "query": "q " * 900}, "`query` has .* `truncate` is false"),
        ({"truncate": False}, r"`documents\[0\]` has .* too many for `max_chunks_per_doc` 2"),
    ],
)
def test_windows_that_cannot_be_are_refused(
    packed: Engine, fields: dict[str, int], message: str
) -> None:
    options = {"query": "q", "max_chunks_per_doc": 2, **fields}
    request = RerankRequest(texts=[FILLER * 1500], **options)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=message):
        split_documents(request, packed.tokenizer("rerank"), 8192, 10**6)
