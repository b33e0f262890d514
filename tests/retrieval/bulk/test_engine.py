"""The engine of `bge bulk` is the worker's."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import pytest

from bge_client import Client, Probe
from bge_retrieval.bulk import engine as bulk_engine
from bge_retrieval.bulk.endpoint_pipeline import identify
from bge_retrieval.bulk.engine import Engine, EngineOptions, tokenize
from bge_retrieval.bulk.manifest import Options
from bge_worker.errors import DeviceError

TEXTS = ["О море", "О суше и о море", "море"]


@pytest.fixture(scope="module")
def options(runtimes: Any) -> EngineOptions:
    return EngineOptions(str(runtimes("packed") / "bge-m3"), device="cpu")


@pytest.fixture(scope="module")
def engine(options: EngineOptions) -> Engine:
    return Engine(options)


def test_a_model_is_the_same_in_a_folder_and_behind_an_endpoint(
    engine: Engine, worker: Client
) -> None:
    through_endpoint = identify(worker)
    assert engine.identity.fingerprint == through_endpoint.fingerprint
    assert engine.identity.dimensions == through_endpoint.dimensions
    assert engine.identity.revision == through_endpoint.revision
    probe = Probe.from_dict(engine.probe())
    rows = probe.compare(worker.embed(probe.texts, sparse=True))
    assert [row.reason for row in rows] == [None] * len(rows)


@pytest.mark.parametrize("max_length", [None, 4])
def test_texts_are_tokenised_and_embedded_as_by_the_worker(
    engine: Engine, options: EngineOptions, worker: Client, max_length: int | None
) -> None:
    encoded = tokenize(options.folder, TEXTS, max_length)
    vectors = engine.embed(encoded, Options(colbert=True))
    expected = worker.embed(
        TEXTS, sparse=True, colbert=True, max_length=max_length, dtype="float32"
    )
    for vector, text, embedding in zip(vectors, encoded, expected, strict=True):
        assert text.truncated == embedding.truncated
        np.testing.assert_allclose(vector.dense, embedding.dense, atol=1e-5)
        np.testing.assert_array_equal(vector.sparse.indices, embedding.sparse.indices)
        np.testing.assert_allclose(vector.colbert, embedding.colbert, atol=1e-5)


def test_a_failed_device_ends_the_process(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise DeviceError("the device is lost")

    monkeypatch.setattr(engine._embedder, "embed_encoded", fail)
    codes: list[int] = []
    monkeypatch.setattr(bulk_engine.os, "_exit", codes.append)
    engine.embed([], Options())
    assert codes == [bulk_engine.DEVICE_FAILED]
