"""`make test-bulk`: engines on a Ray of this machine give what the worker gives."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("ray", reason="make test-bulk")

import ray

from bge_client import BGEError, Client, ConfigurationError
from bge_retrieval.bulk import endpoint_pipeline, ray_pipeline
from bge_retrieval.bulk.engine import EngineOptions
from bge_retrieval.bulk.folder import OutputFolder
from bge_retrieval.bulk.job import Job, open_job
from bge_retrieval.bulk.manifest import Entry, Options
from bge_retrieval.bulk.ray_pipeline import Pool
from bge_retrieval.bulk.sources import Source, open_files
from fakes.bulk_engine import DyingBulkEngine

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own
POOL = Pool(actors=1, threads=1, on_gpus=False)
OPTIONS = Options(dense_dtype="float32", colbert=True, colbert_pool=2, partition_rows=50)


@pytest.fixture(scope="module", autouse=True)
def on_ray() -> Iterator[None]:
    ray_pipeline.connect(None)
    yield
    ray.shutdown()


@pytest.fixture
def engine(runtimes: Any) -> EngineOptions:
    return EngineOptions(str(runtimes("packed") / "bge-m3"))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    words = random.Random(0).choices(["море", "суша", "function", "course", "ветер"], k=4000)
    texts = [" ".join(words[n : n + n % 60]) for n in range(400)]  # texts 0, 60, … are blank
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": n, "text": t}) + "\n" for n, t in enumerate(texts)))
    return open_files(str(path))


def start(source: Source, engine: EngineOptions, folder: Path) -> Job:
    identity = ray_pipeline.identify(engine, POOL)
    return open_job(OutputFolder(str(folder)), source, OPTIONS, identity)


def rows_of(job: Job) -> list[dict[str, Any]]:
    files = [job.folder.vectors_path(number) for number in range(len(job.manifest.partitions))]
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def letters_of(job: Job) -> list[str]:
    paths = sorted(Path(job.folder.path, "dead-letters").iterdir())
    return [line for path in paths for line in path.read_text().splitlines()]


def check_equal(left: Job, right: Job) -> None:
    for row, other in zip(rows_of(left), rows_of(right), strict=True):
        assert (row["id"], row["payload"]) == (other["id"], other["payload"])
        np.testing.assert_allclose(row["dense"], other["dense"], atol=1e-5)
        assert row["sparse"]["indices"] == other["sparse"]["indices"]
        np.testing.assert_allclose(row["sparse"]["values"], other["sparse"]["values"], atol=1e-4)
        np.testing.assert_allclose(row["colbert"], other["colbert"], atol=1e-2)
    assert letters_of(left) == letters_of(right)


def test_an_actor_that_is_killed_costs_nothing_but_its_partitions(
    source: Source, engine: EngineOptions, worker: Client, tmp_path: Path
) -> None:
    """Its output is that of an endpoint, row by row."""
    job = start(source, engine, tmp_path / "ray")
    entries: list[Entry] = []
    for entry in ray_pipeline.run(job, engine, POOL):
        if not entries:
            os.kill(int(entry.actor.rpartition("/")[2]), signal.SIGKILL)
        entries.append(entry)
    assert sorted(entry.partition for entry in entries) == list(range(8))
    assert len({entry.actor for entry in entries}) == 2
    assert sum(entry.failed for entry in entries) == 7
    through_endpoint = open_job(
        OutputFolder(str(tmp_path / "endpoint")),
        source,
        OPTIONS,
        endpoint_pipeline.identify(worker),
    )
    assert job.manifest.model.fingerprint == through_endpoint.manifest.model.fingerprint
    list(endpoint_pipeline.run(through_endpoint, worker))
    check_equal(job, through_endpoint)
    again = start(source, engine, tmp_path / "ray")
    assert list(ray_pipeline.run(again, engine, POOL)) == []


def test_a_text_that_kills_every_process_ends_the_job(
    source: Source, engine: EngineOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pipeline, "MAX_RETRIES", 1)
    identity = ray_pipeline.identify(engine, POOL, DyingBulkEngine)
    options = replace(OPTIONS, colbert=False, colbert_pool=1)
    job = open_job(OutputFolder(str(tmp_path / "out")), source, options, identity)
    with pytest.raises(BGEError, match="Run it again to resume"):
        list(ray_pipeline.run(job, engine, POOL, DyingBulkEngine))


@pytest.mark.parametrize(
    ("threads", "device", "problem"),
    [(1000, "cpu", "CPUs of a machine, [0-9]+. Given: 1000"), (None, "cuda", "Ray has no GPU")],
)
def test_what_the_cluster_lacks_is_refused(threads: int | None, device: str, problem: str) -> None:
    if device == "cuda" and ray.cluster_resources().get("GPU"):
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigurationError, match=problem):
        ray_pipeline.choose_pool(None, threads, device)


def test_an_error_of_a_step_is_raised_as_it_is(
    source: Source, engine: EngineOptions, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError, match="is not a runtime folder"):
        ray_pipeline.identify(EngineOptions(str(tmp_path)), POOL)
    job = start(source, engine, tmp_path / "out")
    (tmp_path / "corpus.jsonl").unlink()
    with pytest.raises(FileNotFoundError):
        list(ray_pipeline.run(job, engine, POOL))
    assert "Traceback" not in capfd.readouterr().err
