"""Metrics count requests as they end and read the state of the device."""

from __future__ import annotations

import httpx

from bge_worker.engine.engine import Engine
from bge_worker.settings import Settings
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
        assert metric(url, "bge_queue_depth") == 0
        assert metric(url, "bge_fp32_retries_total") == packed.recomputed
        model = packed.models["embed"]
        labels = f'fingerprint="{model.fingerprint}",model="{model.model}",role="embed"'
        assert metric(url, f"bge_model_info{{{labels}}}") == 1
