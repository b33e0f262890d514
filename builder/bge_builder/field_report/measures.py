"""What is measured of an endpoint through its client, wherever it runs."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from bge_client import Client
from bge_worker.serving import golden_values
from bge_worker.serving.requests import DEFAULT_PAIR_LENGTH

from ..vocabulary import CORPUS

TEXTS = 4096  # of the throughput
WORDS = 300  # of each: about 512 tokens
QUERIES = 100
QUERY = "как найти минимум функции"
CONCURRENCIES = (1, 8, 16, 32, 64, 128)
REQUESTS_PER_CALLER = 20
MAX_COSINE_LOSS, MAX_SCORE_DIFFERENCE = 1e-3, 0.02  # of fp16 against fp32


def measure_golden_values(client: Client) -> dict[str, Any]:
    """Compute the published values through the client."""
    result = client.embed(golden_values.TEXTS, sparse=True, colbert=True, dtype="float32")
    values = [*golden_values.embed_values([*result])]
    logits: list[float] = []
    for query, documents in golden_values.PAIRS:
        ranking = client.rerank(query, documents, raw_scores=True)
        logits += [item.relevance_score for item in sorted(ranking, key=lambda item: item.index)]
    values += golden_values.score_values(logits)
    return {
        "model": result.model,
        "fingerprint": result.fingerprint,
        "agree": all(value.agrees for value in values),
        "values": [{**value._asdict(), "agrees": value.agrees} for value in values],
    }


def measure_lone_query(client: Client) -> dict[str, Any]:
    """Return the latency of one query at a time, as its caller sees it."""
    client.embed(QUERY)
    return latencies([timed_query(client) for _ in range(QUERIES)])


def timed_query(client: Client) -> float:
    start = time.perf_counter()
    client.embed(QUERY)
    return time.perf_counter() - start


def latencies(seconds: Sequence[float]) -> dict[str, Any]:
    return {
        "requests": len(seconds),
        "p50_ms": round(statistics.median(seconds) * 1e3, 1),
        "p99_ms": round(float(np.percentile(seconds, 99)) * 1e3, 1),
    }


def measure_throughput(client: Client, count: int = TEXTS) -> dict[str, Any]:
    """Return the rate of a bulk request of `count` texts of some 512 tokens."""
    texts = long_texts(count)
    client.embed(texts[:64])
    start = time.perf_counter()
    result = client.embed(texts)
    seconds = time.perf_counter() - start
    tokens = result.usage.prompt_tokens
    return {
        "texts": len(texts),
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds),
        "texts_per_second": round(len(texts) / seconds, 1),
    }


def measure_concurrency(client: Client) -> dict[str, Any]:
    """Return the latency of queries by the number of callers at once."""
    by_callers: dict[str, Any] = {}
    for callers in CONCURRENCIES:
        pool = ThreadPoolExecutor(callers)
        try:
            count = callers * REQUESTS_PER_CALLER
            by_callers[str(callers)] = latencies([*pool.map(timed_query, [client] * count)])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return by_callers


def long_texts(count: int) -> list[str]:
    """Return texts of random words of the shipped corpus, the same in every run."""
    lines = CORPUS.read_text("utf-8").splitlines()
    words = " ".join(json.loads(line)["text"] for line in lines).split()
    rng = random.Random(0)
    return [" ".join(rng.choices(words, k=WORDS)) for _ in range(count)]


class Outputs:
    """The outputs of one endpoint in one precision, to compare with another's."""

    def __init__(self, client: Client) -> None:
        self.dtype = client.info().get("dtype")
        self._texts = long_texts(32) + golden_values.TEXTS
        self._result = client.embed(self._texts, dtype="float32")
        documents = self._texts
        ranking = client.rerank(QUERY, documents)
        self._scores = {item.index: item.relevance_score for item in ranking}

    def compare(self, reference: Outputs) -> dict[str, Any]:
        """Return how far vectors and scores are from the reference's."""
        cosines = row_cosines(required(self._result.dense), required(reference._result.dense))
        differences = [
            abs(score - reference._scores[index]) for index, score in self._scores.items()
        ]
        lost, largest = float((1 - cosines).max()), max(differences)
        return {
            "texts": len(self._texts),
            "max_tokens_of_a_pair": DEFAULT_PAIR_LENGTH,
            "largest_cosine_loss": lost,
            "largest_score_difference": largest,
            "agree": lost <= MAX_COSINE_LOSS and largest <= MAX_SCORE_DIFFERENCE,
        }


def required(vectors: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32]:
    if vectors is None:
        raise AssertionError("the result has no dense vectors. This is a bug.")
    return vectors


def row_cosines(
    left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the cosines [N] of vectors [N, D]."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines: npt.NDArray[np.float32] = np.einsum("nd,nd->n", left, right) / norms
    return cosines
