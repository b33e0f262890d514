"""text-embeddings-inference's routes of the reranker."""

from __future__ import annotations

import math
from typing import Any

import httpx
import pytest

from fakes.serving import KEY, QUERY, TEXTS


def post(url: str, inputs: Any, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {KEY}"}
    return httpx.post(f"{url}/predict", json={"inputs": inputs, **options}, headers=headers)


def test_pairs_are_scored_each_with_its_own_query(
    url: str, ranking: list[tuple[int, float]]
) -> None:
    scores = dict(ranking)
    pairs = [[QUERY, TEXTS[1]], [TEXTS[0], TEXTS[0]], [QUERY, TEXTS[0]]]
    predictions = post(url, pairs).raise_for_status().json()
    found = [prediction["score"] for (prediction,) in predictions]
    assert [found[0], found[2]] == pytest.approx([scores[1], scores[0]])
    assert found[1] not in scores.values()
    (alone,) = post(url, pairs[0]).raise_for_status().json()
    assert alone == {"score": pytest.approx(scores[1]), "label": "LABEL_0"}


def test_raw_scores_are_logits(url: str, ranking: list[tuple[int, float]]) -> None:
    (prediction,) = post(url, [QUERY, TEXTS[0]], raw_scores=True).json()
    score = dict(ranking)[0]
    assert prediction["score"] == pytest.approx(math.log(score / (1 - score)), rel=1e-4)


@pytest.mark.parametrize("inputs", [["a"], ["a", "b", "c"], ["a", ["b", "c"]]])
def test_what_is_not_a_pair_is_refused(url: str, inputs: Any) -> None:
    response = post(url, inputs)
    assert response.status_code == 422
    assert "`inputs` must be a pair of texts or a list of pairs" in response.json()["error"]


def test_a_blank_text_of_a_pair_is_named(url: str) -> None:
    response = post(url, [["a", "b"], ["c", " "]])
    assert response.status_code == 422
    assert "`inputs[1][1]`" in response.json()["error"]
