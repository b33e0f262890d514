"""vLLM's score and tokenize."""

from __future__ import annotations

import math

import httpx
import pytest

from fakes.serving import KEY, QUERY, TEXTS

HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_scores_keep_the_order_of_the_texts(
    path: str, url: str, ranking: list[tuple[int, float]]
) -> None:
    body = {"text_1": [QUERY], "text_2": TEXTS}
    data = httpx.post(url + path, json=body, headers=HEADERS).raise_for_status().json()["data"]
    assert [(item["index"], item["score"]) for item in data] == sorted(ranking)


def test_tokens_are_decoded_again(url: str) -> None:
    body = {"prompt": TEXTS[0], "return_token_strs": True, "add_special_tokens": False}
    reply = httpx.post(f"{url}/tokenize", json=body, headers=HEADERS).raise_for_status().json()
    assert reply["count"] == len(reply["tokens"]) == len(reply["token_strs"])
    body = {"tokens": reply["tokens"]}
    text = httpx.post(f"{url}/detokenize", json=body, headers=HEADERS).json()["prompt"]
    assert text == TEXTS[0].lower()  # the miniature's tokenizer lowers


def test_as_many_queries_as_texts_are_scored_pair_by_pair(url: str) -> None:
    def scores(queries: list[str], texts: list[str]) -> list[float]:
        body = {"text_1": queries, "text_2": texts}
        reply = httpx.post(f"{url}/score", json=body, headers=HEADERS).raise_for_status()
        return [item["score"] for item in reply.json()["data"]]

    expected = scores([QUERY], TEXTS)[:1] + scores(["о суше"], TEXTS)[1:]
    assert scores([QUERY, *["о суше"] * (len(TEXTS) - 1)], TEXTS) == pytest.approx(expected)


def test_other_numbers_of_queries_are_refused(url: str) -> None:
    body = {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}
    reply = httpx.post(f"{url}/score", json=body, headers=HEADERS)
    assert reply.status_code == 400
    message = reply.json()["error"]["message"]
    assert "`text_1` must be one text, or as many as `text_2`: 3. Given: 2" in message


def test_without_activation_scores_are_logits(url: str) -> None:
    body = {"text_1": QUERY, "text_2": TEXTS}
    replies = [
        httpx.post(f"{url}/score", json=body | options, headers=HEADERS).json()["data"][0]["score"]
        for options in ({}, {"use_activation": False}, {"activation": False})
    ]
    assert replies[1] == replies[2] == pytest.approx(math.log(replies[0] / (1 - replies[0])))
