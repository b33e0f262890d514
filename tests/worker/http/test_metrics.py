"""Metrics count requests as they end and read the state of the device."""

from __future__ import annotations

import re

import httpx
import pytest

from bge_worker.engine.engine import Engine
from bge_worker.settings import Settings
from fakes.engine import FakeEngine
from fakes.serving import TEXTS, metric, serving


def test_metrics_add_up(packed: Engine) -> None:
    with serving(packed, Settings()) as url:
        for _ in range(3):
            httpx.post(f"{url}/native/embed", json={"texts": TEXTS, "max_length": 5})
        httpx.post(f"{url}/native/embed", json={"texts": []})
        tokens = 3 * 2 * 5
        assert metric(url, 'bge_requests_total{route="/native/embed",status="200"}') == 3
        assert metric(url, 'bge_requests_total{route="/native/embed",status="422"}') == 1
        assert metric(url, "bge_texts_total") == metric(url, "bge_truncated_texts_total") == 6
        assert metric(url, "bge_tokens_total") == tokens
        assert metric(url, "bge_micro_batch_tokens_total") == tokens
        assert metric(url, "bge_micro_batch_seconds_total") > 0
        assert metric(url, "bge_micro_batches_total") == 3
        assert metric(url, 'bge_stage_seconds_count{stage="inference"}') == 3
        assert metric(url, "bge_request_tokens_sum") == tokens
        assert metric(url, "bge_request_tokens_count") == 3
        assert metric(url, 'bge_micro_batch_fill_bucket{le="0.1"}') == 3
        assert metric(url, 'bge_micro_batch_fill_bucket{le="+Inf"}') == 3
        assert metric(url, "bge_queue_depth") == 0
        assert metric(url, "bge_healthy") == 1
        assert metric(url, "bge_max_queue") == Settings().max_queue
        assert metric(url, "bge_fp32_retries_total") == packed.recomputed
        model = packed.models["embed"]
        labels = f'fingerprint="{model.fingerprint}",model="{model.model}",role="embed"'
        assert metric(url, f"bge_model_info{{{labels}}}") == 1


@pytest.mark.parametrize(
    ("tokens", "bound"), [(1, "0.1"), (10, "0.1"), (11, "0.2"), (100, "1.0"), (101, "+Inf")]
)
def test_the_fill_of_a_micro_batch_is_in_its_bucket(tokens: int, bound: str) -> None:
    engine = FakeEngine(max_batch_tokens=100)
    with serving(engine, Settings()) as url:
        httpx.post(f"{url}/native/rerank", json={"query": "q", "documents": ["x" * tokens]})
        text = httpx.get(f"{url}/metrics").text
    buckets = re.findall(r'bge_micro_batch_fill_bucket{le="(.+)"} (.+)', text)
    assert next(le for le, count in buckets if float(count)) == bound
