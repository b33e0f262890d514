"""Replies, field by field, on both engines."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import numpy as np
import pytest

from bge_worker.serving.service import Service
from fakes.serving import TEXTS, answer

COMMON_FIELDS = {"model", "fingerprint", "usage", "truncated", "input_digest", "timings_ms"}


def test_a_reply_holds_the_requested_outputs_alone(service: Service) -> None:
    dense = answer(service, {"texts": TEXTS})
    assert dense.keys() == COMMON_FIELDS | {"embeddings", "dimensions"}
    assert dense["dimensions"] == 512
    assert np.linalg.norm(dense["embeddings"], axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert all(round(x, 7) == x for x in dense["embeddings"][0])
    assert dense["usage"]["prompt_tokens"] == dense["usage"]["total_tokens"] > 10
    assert dense["timings_ms"].keys() == {"queue", "tokenize", "inference"}
    sparse = answer(service, {"texts": TEXTS, "return_dense": False, "return_sparse": True})
    assert sparse.keys() == COMMON_FIELDS | {"sparse_embeddings"}


def test_a_single_string_gives_lists_of_length_one(service: Service) -> None:
    outputs = {"return_sparse": True, "return_colbert": True}
    single, several = (answer(service, {"texts": texts} | outputs) for texts in (TEXTS[0], TEXTS))
    assert len(single["embeddings"]) == len(single["sparse_embeddings"]) == 1
    np.testing.assert_allclose(single["embeddings"][0], several["embeddings"][0], atol=2e-6)
    tokens = single["usage"]["prompt_tokens"]
    assert np.shape(single["colbert_embeddings"]) == (1, tokens - 1, 512)


def test_sparse_vectors_have_ascending_indices_without_special_tokens(service: Service) -> None:
    texts = ["море море <unk> </s> суша", "x"]
    reply = answer(service, {"texts": texts, "return_sparse": True})
    for vector in reply["sparse_embeddings"]:
        assert vector["indices"] == sorted(set(vector["indices"]))
        assert len(vector["indices"]) == len(vector["values"])
        assert all(value > 0 for value in vector["values"])
        assert not {0, 1, 2, 3} & set(vector["indices"])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-7), ("float16", 1e-3)])
def test_base64_holds_the_numbers_of_floats(service: Service, dtype: str, tolerance: float) -> None:
    def decode(data: str) -> Any:
        return np.frombuffer(base64.b64decode(data), np.dtype(dtype))

    payload = {"texts": TEXTS, "return_colbert": True}
    floats = answer(service, payload)
    encoded = answer(service, payload | {"encoding_format": "base64", "dtype": dtype})
    for index in range(len(TEXTS)):
        dense, colbert = encoded["embeddings"][index], encoded["colbert_embeddings"][index]
        np.testing.assert_allclose(decode(dense), floats["embeddings"][index], atol=tolerance)
        vectors = decode(colbert["data"]).reshape(colbert["shape"])
        np.testing.assert_allclose(vectors, floats["colbert_embeddings"][index], atol=tolerance)


def test_truncated_texts_are_listed(service: Service) -> None:
    reply = answer(service, {"texts": ["a", "слово " * 50, "b"], "max_length": 16})
    assert reply["truncated"] == [1]
    assert reply["usage"]["prompt_tokens"] <= 3 * 16
    pairs = {"query": "море", "documents": ["суша", "слово " * 50], "max_length": 20}
    assert answer(service, pairs)["truncated"] == [1]


def test_a_ranking_is_sorted_and_refers_to_the_documents(service: Service) -> None:
    documents = ["История Рима", TEXTS[0], "Спуск с горы"]
    payload = {"query": "градиентный спуск", "documents": documents}
    reply = answer(service, payload | {"return_documents": True})
    assert reply.keys() == COMMON_FIELDS | {"results"}
    assert [result["index"] for result in reply["results"]] == [1, 2, 0]
    scores = [result["relevance_score"] for result in reply["results"]]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[2] < 0.5 < scores[0] < 1
    assert reply["results"][0]["document"] == {"text": documents[1]}
    raw = answer(service, payload | {"raw_scores": True})
    logits = np.array([result["relevance_score"] for result in raw["results"]])
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), scores, atol=1e-6)
    (best,) = answer(service, payload | {"top_n": 1})["results"]
    assert best == {"index": 1, "relevance_score": pytest.approx(scores[0])}


def test_equal_scores_keep_the_order_of_the_documents(service: Service) -> None:
    documents = [{"text": text} for text in ("море", "суша", "море", "суша", "море")]
    reply = answer(service, {"query": "море", "documents": documents})
    assert [result["index"] for result in reply["results"]] == [0, 2, 4, 1, 3]


def test_a_reply_holds_the_digest_of_its_input(service: Service) -> None:
    def digest(*texts: str) -> str:  # as the contract has it
        framed = (len(text.encode()).to_bytes(8, "little") + text.encode() for text in texts)
        return hashlib.sha256(b"".join(framed)).hexdigest()[:16]

    assert answer(service, {"texts": "море"})["input_digest"] == digest("море")
    reply = answer(service, {"query": "море", "documents": ["суша", {"text": "a"}]})
    assert reply["input_digest"] == digest("море", "суша", "a")
