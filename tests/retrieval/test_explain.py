"""Explanations: their sums are the similarities of the vectors, their tokens those of the texts."""

from __future__ import annotations

import numpy as np
import pytest

from bge_client import Client
from bge_retrieval import ServerTokenizer, explain

QUERY = "минимум функции"
DOCUMENTS = ["Градиентный спуск ищет минимум функции.", "A transaction is all or nothing."]


def test_sums_are_the_similarities_of_the_vectors(worker: Client) -> None:
    explanations = explain(worker, ServerTokenizer(worker), QUERY, DOCUMENTS)
    query, *documents = worker.embed([QUERY, *DOCUMENTS], sparse=True, colbert=True)
    for explanation, document in zip(explanations, documents, strict=True):
        assert explanation.dense == pytest.approx(float(query.dense @ document.dense), abs=1e-5)
        weights = np.zeros((2, 250_002))
        for row, vector in zip(weights, (query.sparse, document.sparse), strict=True):
            row[vector.indices] = vector.values
        assert explanation.sparse == pytest.approx(weights[0] @ weights[1], abs=1e-5)
        maxima = (query.colbert.astype(float) @ document.colbert.astype(float).T).max(axis=1)
        assert explanation.colbert == pytest.approx(maxima.mean(), abs=1e-3)


def test_tokens_are_those_that_match(worker: Client) -> None:
    same, other = explain(worker, ServerTokenizer(worker), QUERY, DOCUMENTS)
    assert {token.text for token in same.shared} == {
        token.text for token in ServerTokenizer(worker).tokens([QUERY])[0]
    }
    products = [token.product for token in same.shared]
    assert products == sorted(products, reverse=True)
    assert other.shared == []
    *aligned, end = same.aligned
    assert [token.query_token for token in aligned] == [token.document_token for token in aligned]
    assert end.query_token == "</s>"


def test_a_text_that_is_cut_is_explained_up_to_there(worker: Client) -> None:
    text = "суша " * 10 + QUERY
    whole, cut = (
        explain(worker, ServerTokenizer(worker), QUERY, [text], max_length=limit)[0]
        for limit in (64, 12)
    )
    assert whole.shared
    assert cut.shared == []
    assert {token.document_token for token in cut.aligned} <= {"▁с", "▁су", "уш", "ша", "а", "</s>"}
