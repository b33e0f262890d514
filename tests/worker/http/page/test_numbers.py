"""Each view shows the numbers of the API."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Locator

    from conftest import Reader

TEXTS = [
    "Как найти минимум функции?",
    "Градиентный спуск ищет минимум функции потерь.",
    "Gradient descent finds a minimum.",
    "Find the minimum of a function",
]
QUERY = "минимум функции"


def reply(api: httpx.Client, path: str, **body: Any) -> Any:
    return api.post(path, json=body).raise_for_status().json()


def texts_of(locator: Locator) -> list[str]:
    return locator.all_text_contents()


def test_the_map_shows_cosines(reader: Reader, api: httpx.Client) -> None:
    reader.compare(TEXTS)
    vectors = np.array(reply(api, "/native/embed", texts=TEXTS)["embeddings"])
    shown = [float(text) for text in texts_of(reader.page.locator("#map button"))]
    np.testing.assert_allclose(shown, (vectors @ vectors.T).ravel(), atol=6e-4)


def test_a_pair_shows_its_sparse_and_colbert_scores(reader: Reader, api: httpx.Client) -> None:
    reader.compare(TEXTS)
    reader.open_pair(0, 1)
    outputs = {"return_sparse": True, "return_colbert": True, "return_tokens": True}
    body = reply(api, "/native/embed", texts=TEXTS[:2], **outputs)

    weights = [
        dict(zip(vector["indices"], vector["values"], strict=True))
        for vector in body["sparse_embeddings"]
    ]
    shared = weights[0].keys() & weights[1].keys()
    products = sorted((weights[0][id] * weights[1][id] for id in shared), reverse=True)
    rows = reader.page.locator("#pair table").first.locator("tbody tr")
    shown = [float(text) for text in texts_of(rows.locator("td:last-child"))]
    assert len(shared) >= 2
    np.testing.assert_allclose(shown, products, atol=6e-5)

    query, document = (np.array(vectors) for vectors in body["colbert_embeddings"])
    similarities = query @ document.T
    reader.page.click("#pair summary")
    rows = reader.page.locator("#pair details tbody tr")
    shown = [float(text) for text in texts_of(rows.locator("td:last-child"))]
    np.testing.assert_allclose(shown, similarities.max(axis=1), atol=6e-5)
    best = [body["tokens"][1][1 + index] for index in similarities.argmax(axis=1)]
    assert texts_of(rows.locator("td:nth-child(2)")) == best
    assert texts_of(rows.locator("th")) == body["tokens"][0][1:]

    dense = float(np.dot(*body["embeddings"]))
    scores = [dense, sum(products), similarities.max(axis=1).mean()]
    shown = [float(text) for text in texts_of(reader.page.locator("[data-score] b"))]
    np.testing.assert_allclose(shown, scores, atol=6e-5)


def test_a_ranking_shows_scores_and_the_ranks_before(reader: Reader, api: httpx.Client) -> None:
    reader.rerank(QUERY, TEXTS)
    results = reply(api, "/native/rerank", query=QUERY, documents=TEXTS)["results"]
    vectors = np.array(reply(api, "/native/embed", texts=[QUERY, *TEXTS])["embeddings"])
    dense = vectors[1:] @ vectors[0]
    order = [result["index"] for result in results]

    rows = reader.page.locator("#ranking tbody tr")
    assert texts_of(rows.locator("th")) == [TEXTS[index] for index in order]
    shown = [float(text) for text in texts_of(rows.locator("td:last-child"))]
    np.testing.assert_allclose(shown, [r["relevance_score"] for r in results], atol=6e-5)
    shown = [float(text) for text in texts_of(rows.locator("td:nth-child(4)"))]
    np.testing.assert_allclose(shown, dense[order], atol=6e-5)
    ranks = (-dense).argsort().argsort() + 1
    shown_ranks = [int(text.split()[0]) for text in texts_of(rows.locator("td:nth-child(2)"))]
    assert shown_ranks == list(ranks[order])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("documents.txt", "\n".join(TEXTS)),
        ("documents.json", json.dumps([{"text": text} for text in TEXTS])),
        ("documents.jsonl", "\n".join(json.dumps({"text": text}) for text in TEXTS)),
    ],
)
def test_documents_may_come_from_a_file(reader: Reader, name: str, content: str) -> None:
    reader.page.click("#tab-rerank")
    file = {"name": name, "mimeType": "text/plain", "buffer": content.encode()}
    reader.page.set_input_files("#rerank-file", files=[file])
    reader.page.wait_for_selector("#rerank-loaded")
    reader.page.click("#rerank button.main")
    reader.page.wait_for_selector("#ranking tbody")
    assert sorted(texts_of(reader.page.locator("#ranking tbody th"))) == sorted(TEXTS)


def test_a_file_may_be_dropped(reader: Reader) -> None:
    reader.page.click("#tab-rerank")
    files = reader.page.evaluate_handle(
        "() => { const data = new DataTransfer();"
        " data.items.add(new File(['one\\ntwo\\n'], 'two.txt')); return data; }"
    )
    reader.page.dispatch_event("#rerank-documents", "drop", {"dataTransfer": files})
    reader.page.wait_for_selector("text=2 documents of two.txt")


def test_tokens_and_their_weights(reader: Reader, api: httpx.Client) -> None:
    text = "Градиент — это вектор. 🌊 A gradient."
    reader.tokenize(text)
    reader.page.click("#token-list summary")
    (tokens,) = reply(api, "/tokenize", inputs=[text])
    body = reply(api, "/native/embed", texts=[text], return_dense=False, return_sparse=True)
    sparse = body["sparse_embeddings"][0]
    weights = dict(zip(sparse["indices"], sparse["values"], strict=True))

    assert texts_of(reader.page.locator("#token-list .token")) == [
        token["text"] for token in tokens
    ]
    rows = reader.page.locator("#token-list tbody tr")
    assert texts_of(rows.locator("td:nth-child(2)")) == [str(token["id"]) for token in tokens]
    shown = [float(text or 0) for text in texts_of(rows.locator("td:last-child"))]
    np.testing.assert_allclose(shown, [weights.get(t["id"], 0) for t in tokens], atol=6e-5)


def test_the_server_view_shows_its_info(reader: Reader, api: httpx.Client) -> None:
    reader.watch()
    info = api.get("/native/info").json()
    shown = reader.page.inner_text("#info")
    for model in info["models"].values():
        assert model["fingerprint"] in shown
    for name in ("device", "dtype", "attention", "attention_reason"):
        assert info[name] in shown
    assert f"{info['limits']['max_queue']:,}" in shown


METRICS = """
bge_requests_total{{route="/native/embed",status="200"}} {count}
bge_requests_total{{route="/native/rerank",status="429"}} {refused}
bge_requests_total{{route="/metrics",status="200"}} 1000
bge_request_seconds_bucket{{le="0.1",route="/native/embed"}} {fast}
bge_request_seconds_bucket{{le="0.2",route="/native/embed"}} {count}
bge_request_seconds_bucket{{le="+Inf",route="/native/embed"}} {count}
bge_request_seconds_bucket{{le="0.1",route="/metrics"}} 1000
bge_tokens_total {tokens}
bge_queue_depth 3.0
bge_micro_batch_seconds_total {busy}
"""


def test_the_charts_begin_again_with_another_process(reader: Reader) -> None:
    page = reader.page
    page.clock.install()
    starts = [1, 1, 1, 2, 2]
    page.route(
        "**/metrics",
        lambda route: route.fulfill(body=f"process_start_time_seconds {starts.pop(0)}\n"),
    )
    page.reload()
    page.wait_for_selector("#info table", state="attached")
    page.click("#tab-server")
    points = []
    while starts:
        with page.expect_response("**/metrics"):
            page.clock.run_for(2000)
        page.wait_for_timeout(100)
        path = page.locator("#charts path.first").first.get_attribute("d") or ""
        points.append(len(path.split("L")) if path else 0)
    assert points == [1, 2, 0, 1]


def test_charts_are_rates_and_quantiles_between_samples(reader: Reader) -> None:
    """In 10 seconds 15 requests took at most 0.1 s and 5 at most 0.2 s; 5 were refused."""
    samples = [
        METRICS.format(count=10.0, fast=10.0, refused=0.0, tokens=100.0, busy=1.0),
        METRICS.format(count=30.0, fast=25.0, refused=5.0, tokens=600.0, busy=3.5),
    ]
    points = reader.page.evaluate(
        "async texts => { const {parseMetrics, pointsOf} = await import('/page/metrics.js');"
        " return pointsOf(texts.map((text, index) => parseMetrics(text, index * 10_000))); }",
        samples,
    )
    (point,) = points
    assert point == {
        "time": 10_000,
        "requests": 2.5,
        "errors": 0.5,
        "tokens": 50,
        "load": 25,
        "queue": 3,
        "p50": pytest.approx(1000 * 0.1 * 10 / 15),
        "p99": pytest.approx(1000 * (0.1 + 0.1 * (19.8 - 15) / 5)),
    }
