"""Prometheus metrics: `GET /metrics`.

Requests are counted as they end; the state of the queue and the device is read at each scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

if TYPE_CHECKING:  # imports torch
    from ..engine.pipeline import Counts
    from ..serving.batcher import Finished
    from ..serving.service import Service

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKENS = tuple(4**power for power in range(2, 11))  # 16 to a million
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Has its own registry, so that two servers in one process do not share metrics."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "bge_requests", "HTTP requests answered", ("route", "status"), registry=registry
        )
        self._request_seconds = Histogram(
            "bge_request_seconds",
            "From the request's head to its reply",
            ("route",),
            registry=registry,
            buckets=SECONDS,
        )
        self._stage_seconds = Histogram(
            "bge_stage_seconds",
            "Stages of a request: queue, tokenize, inference",
            ("stage",),
            registry=registry,
            buckets=SECONDS,
        )
        self._request_tokens = Histogram(
            "bge_request_tokens",
            "Tokens of a computed request",
            registry=registry,
            buckets=TOKENS,
        )
        self._texts = Counter("bge_texts", "Texts and documents computed", registry=registry)
        self._tokens = Counter("bge_tokens", "Tokens computed", registry=registry)
        self._truncated = Counter("bge_truncated_texts", "Truncated texts", registry=registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, status).inc()
        self._request_seconds.labels(route).observe(seconds)

    def computed(self, finished: Finished) -> None:
        """Count a computed request."""
        timings = finished.timings
        for stage in ("queue", "tokenize", "inference"):
            self._stage_seconds.labels(stage).observe(getattr(timings, stage) / 1e3)
        self._texts.inc(len(finished.encoded))
        tokens = sum(len(text.ids) for text in finished.encoded)
        self._tokens.inc(tokens)
        self._request_tokens.observe(tokens)
        self._truncated.inc(sum(text.truncated for text in finished.encoded))

    def watch(self, service: Service) -> None:
        """Add the state of the service."""
        self._registry.register(_ServiceCollector(service))

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _ServiceCollector(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        counts, engine = self._service.batcher.counts, self._service.engine
        budget = engine.runtime.max_batch_tokens
        gauges: dict[str, tuple[str, float]] = {
            "bge_healthy": ("1 while the worker can compute", self._service.healthy),
            "bge_queue_depth": ("Requests not answered yet", self._service.batcher.depth),
            "bge_max_queue": ("Requests that may be in flight", self._service.settings.max_queue),
            "bge_max_batch_tokens": ("The token budget of a micro-batch", budget),
        }
        counters: dict[str, tuple[str, float]] = {
            "bge_micro_batches": ("Micro-batches run", counts.batches),
            "bge_micro_batch_tokens": (
                "Tokens in them; divided by micro-batches and budget: their fill",
                counts.tokens,
            ),
            "bge_micro_batch_seconds": (
                "Seconds spent on them; divided by the time between two scrapes: the device's load",
                counts.seconds,
            ),
            "bge_out_of_memory": (
                "Micro-batches halved because they did not fit the device",
                counts.out_of_memory,
            ),
            "bge_fp32_retries": ("Texts recomputed in fp32", engine.recomputed),
        }
        yield from _families(GaugeMetricFamily, gauges)
        yield from _families(CounterMetricFamily, counters)
        yield _fill(counts, budget)
        models = GaugeMetricFamily(
            "bge_model_info", "Always 1", labels=("role", "model", "fingerprint")
        )
        for role, model in self._service.models.items():
            models.add_metric([role, model.model, model.fingerprint], 1)
        yield models


def _fill(counts: Counts, budget: int) -> Metric:
    """Return the distribution of the fill of micro-batches."""
    steps = len(counts.fills) - 1
    bounds = [*(str(step / steps) for step in range(1, steps + 1)), "+Inf"]
    return HistogramMetricFamily(
        "bge_micro_batch_fill",
        "Tokens of a micro-batch, as a fraction of the token budget",
        buckets=[*zip(bounds, accumulate(counts.fills), strict=True)],
        sum_value=counts.tokens / budget,
    )


def _families(
    kind: Callable[..., Metric], values: dict[str, tuple[str, float]]
) -> Iterator[Metric]:
    return (kind(name, help_, value=value) for name, (help_, value) in values.items())
