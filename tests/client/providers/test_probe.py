"""Vectors of another host get the endpoint's fingerprint if they are the same, and only then."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_client import Client, ConfigurationError, OpenAICompatible, Probe, ProbeError
from bge_client.providers import probe as module
from bge_client.providers.probe import ProbeText
from bge_client.results import EmbedResult, SparseVector, Usage
from bge_worker.engine.engine import PackedEngine
from fakes.host_vectors import dense_of, mean_pooled, perturbed
from fakes.hosts import SHAPES, Embed, Host

Endpoints = Callable[[str], Client]
OWN = "deepinfra/BAAI/bge-m3"


def provider_of(host: Host, probe: Probe | None) -> OpenAICompatible:
    return OpenAICompatible(
        host.name,
        host.base,
        host.key,
        embedding_model=host.model,
        max_texts=32,
        probe=probe,
    )


def refusal(embed: Embed, probe: Probe) -> str:
    """Return the message with which a host's vectors are refused. It answers nothing else."""
    with Host("deepinfra", embed) as host:
        provider = provider_of(host, probe)
        with pytest.raises(ProbeError) as caught:
            provider.check_fingerprint(probe.fingerprint)
        assert len(host.requests) == 1
        assert provider.embed("море").fingerprint == OWN
        provider.close()
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_worker_s_vectors_pass_behind_every_shape(
    name: str, dtype: str, endpoints: Endpoints, miniature_probe: Probe
) -> None:
    client = endpoints(f"miniature-{dtype}")
    with Host(name, lambda texts: dense_of(client, texts)) as host:
        provider = provider_of(host, miniature_probe)
        provider.check_fingerprint(miniature_probe.fingerprint)
        result = provider.embed(["море", "суша"])
        provider.close()
    assert (result.fingerprint, result.provider) == (miniature_probe.fingerprint, name)
    np.testing.assert_allclose(result.dense, dense_of(client, ["море", "суша"]), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_both_float_types_pass_at_the_depth_of_bge_m3(
    dtype: str, endpoints: Endpoints, deep_probe: Probe
) -> None:
    rows = deep_probe.compare(endpoints(f"deep-{dtype}").embed(deep_probe.texts, sparse=True))
    assert [row.reason for row in rows] == [None] * 5
    assert min(row.cosine for row in rows) > 0.99999


def test_int8_weights_are_refused(endpoints: Endpoints, deep_probe: Probe) -> None:
    client = endpoints("deep-int8")
    message = refusal(lambda texts: dense_of(client, texts), deep_probe)
    assert re.search(r"text `\w+` has cosine 0\.99\d+, at least 0\.999 is required", message)


def test_another_model_is_refused(endpoints: Endpoints, deep_probe: Probe) -> None:
    client = endpoints("other-float32")
    message = refusal(lambda texts: dense_of(client, texts), deep_probe)
    assert message.count("has cosine") == 5


def test_a_host_that_truncates_at_512_tokens_is_refused_for_the_long_text(
    endpoints: Endpoints, deep_probe: Probe
) -> None:
    client = endpoints("deep-float32")
    message = refusal(lambda texts: dense_of(client, texts, max_length=512), deep_probe)
    assert message.startswith("vectors of deepinfra do not match: text `long` has cosine 0.99")
    assert message.count("has cosine") == 1


def test_mean_pooling_is_refused(
    engines: Callable[[str], PackedEngine], miniature_probe: Probe
) -> None:
    engine = engines("miniature-float32")
    assert "has cosine" in refusal(lambda texts: mean_pooled(engine, texts), miniature_probe)


def test_vectors_of_another_size_are_refused(deep_probe: Probe) -> None:
    message = refusal(lambda texts: np.eye(len(texts), 64), deep_probe)
    assert "the probe has 5 vectors of 128 dimensions. Given: (5, 64)" in message


def test_the_same_vector_for_every_text_is_refused() -> None:
    """Each is close to its own, and to every other as well."""
    probe = synthetic_probe(np.eye(1, 16).repeat(3, 0))
    message = refusal(lambda texts: np.eye(1, 16).repeat(len(texts), 0), probe)
    assert "1.00000 with another text: a margin of at least 0.005 is required" in message


def test_vectors_that_are_not_normalised_pass_normalised_and_it_is_logged_once(
    endpoints: Endpoints, miniature_probe: Probe, caplog: pytest.LogCaptureFixture
) -> None:
    client = endpoints("miniature-float32")
    with Host("tei", lambda texts: 3 * dense_of(client, texts)) as host:
        provider = provider_of(host, miniature_probe)
        results = [provider.embed(["море", "суша"]) for _ in range(3)]
        provider.close()
    assert results[0].fingerprint == miniature_probe.fingerprint
    np.testing.assert_allclose(np.linalg.norm(results[0].dense, axis=1), 1, atol=1e-6)
    assert caplog.text.count("vectors of tei have length 3, not 1: they are normalised") == 1


# ------------------------------------------------------------------- synthetic vectors


def synthetic_probe(vectors: np.ndarray[Any, Any]) -> Probe:
    sparse = SparseVector(np.array([5, 7], np.uint32), np.array([0.25, 0.5], np.float32))
    items = [
        ProbeText(f"t{i}", f"text {i}", vector.astype(np.float32), sparse)
        for i, vector in enumerate(vectors)
    ]
    return Probe("f", "m", tuple(items))


def result_of(vectors: np.ndarray[Any, Any], weights: float | None = None) -> EmbedResult:
    sparse = SparseVector(np.array([5, 7], np.uint32), np.array([0.25, weights or 0], np.float32))
    return EmbedResult(
        vectors.astype(np.float32),
        None if weights is None else [sparse] * len(vectors),
        None,
        truncated=[],
        usage=Usage(),
        model="m",
        fingerprint="x",
        count=len(vectors),
    )


def random_units(seed: int, count: int = 5, dimensions: int = 256) -> np.ndarray[Any, Any]:
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions))
    units: np.ndarray[Any, Any] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return units


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0.99, 1), st.floats(0.1, 100))
def test_the_limit_is_a_cosine_of_0_999_whatever_the_direction_and_length(
    seed: int, cosine: float, length: float
) -> None:
    vectors = random_units(seed)
    rows = synthetic_probe(vectors).compare(
        result_of(length * perturbed(vectors, cosine, seed + 1))
    )
    for row in rows:
        assert row.cosine == pytest.approx(cosine, abs=1e-5)
        if abs(cosine - 0.999) > 1e-5:
            assert (row.reason is None) == (cosine > 0.999)


def test_a_cosine_of_0_9995_passes_and_one_of_0_9985_does_not(deep_probe: Probe) -> None:
    vectors = np.stack([item.dense for item in deep_probe.items])
    near, far = (
        [row.reason for row in deep_probe.compare(result_of(perturbed(vectors, cosine)))]
        for cosine in (0.9995, 0.9985)
    )
    assert near == [None] * 5
    assert all(reason and "0.99850" in reason for reason in far)


def test_one_text_that_differs_is_enough() -> None:
    vectors = random_units(0)
    given = vectors.copy()
    given[3] = perturbed(vectors[3:4], 0.998)
    reasons = [row.reason for row in synthetic_probe(vectors).compare(result_of(given))]
    assert [reason is None for reason in reasons] == [True, True, True, False, True]


def test_sparse_weights_are_compared_if_there_are_any() -> None:
    vectors = random_units(0)
    probe = synthetic_probe(vectors)
    assert probe.compare(result_of(vectors, 0.51))[0].reason is None
    reason = probe.compare(result_of(vectors, 0.6))[0].reason
    assert reason == "text `t0` has sparse weights that differ by 0.1000, at most 0.02 is allowed"


# ----------------------------------------------------------------- storage and repetition


def test_a_probe_survives_json(deep_probe: Probe) -> None:
    loaded = Probe.loads(deep_probe.dumps())
    assert (loaded.fingerprint, loaded.model) == (deep_probe.fingerprint, deep_probe.model)
    assert loaded.texts == deep_probe.texts
    for item, expected in zip(loaded.items, deep_probe.items, strict=True):
        np.testing.assert_array_equal(item.dense, expected.dense)
        np.testing.assert_array_equal(item.sparse.indices, expected.sparse.indices)
        np.testing.assert_allclose(item.sparse.values, expected.sparse.values, atol=1e-6)


def broken(**changes: Any) -> str:
    stored = synthetic_probe(random_units(0)).as_dict()
    stored["items"][0] |= changes
    return json.dumps(stored)


@pytest.mark.parametrize(
    "text",
    [
        *("", "море", "[]", "{}", '{"fingerprint": "f", "model": "m", "items": []}'),
        *(broken(dense=""), broken(dense="?"), broken(dense="AAAA"), broken(dense=None)),
        *(broken(dense="AH4A" * 128), broken(values=[1]), broken(indices=[-1, 2])),
    ],
)
def test_a_malformed_probe_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="the probe is malformed: record it again"):
        Probe.loads(text)


def test_a_provider_is_compared_once_a_day(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = synthetic_probe(np.eye(4, 8))
    caplog.set_level(logging.INFO, "bge_client")
    with Host("deepinfra", lambda texts: np.eye(len(texts), 8)) as host:
        provider = provider_of(host, probe)
        for _ in range(3):
            provider.check_fingerprint("f")
        assert len(host.requests) == 1
        assert "deepinfra passed the probe of f: cosine 1.00000" in caplog.text
        now = time.monotonic()
        monkeypatch.setattr(module.time, "monotonic", lambda: now + 86_401)
        host.embed = lambda texts: -np.eye(len(texts), 8)
        with pytest.raises(ProbeError, match="text `t0` has cosine -1"):
            provider.check_fingerprint("f")
        provider.close()


def test_without_its_probe_a_provider_answers_for_its_own_fingerprint_alone() -> None:
    with Host("deepinfra") as host:
        for probe in (None, synthetic_probe(np.eye(4, 8))):
            provider = provider_of(host, probe)
            provider.check_fingerprint(OWN)
            with pytest.raises(ProbeError, match="only with a probe of that endpoint: `bge probe"):
                provider.check_fingerprint("another")
            provider.close()
        assert host.requests == []
