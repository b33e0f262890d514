"""`make test-bulk`: an actor for each GPU, on a machine with as few CPUs as GPUs.

Ray is told of GPUs that are not there, and the engine is a stand-in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytest.importorskip("ray", reason="make test-bulk")

import ray

from bge_retrieval.bulk import ray_pipeline
from bge_retrieval.bulk.engine import EngineOptions, tokenize
from bge_retrieval.bulk.folder import OutputFolder
from bge_retrieval.bulk.job import open_job
from bge_retrieval.bulk.manifest import Options
from bge_retrieval.bulk.sources import open_files
from fakes.bulk_engine import FakeBulkEngine

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own


def test_each_gpu_has_an_actor(runtimes: Any, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    texts = ["море " * (1 + n % 7) for n in range(300)]
    path.write_text("".join(json.dumps({"_id": n, "text": t}) + "\n" for n, t in enumerate(texts)))
    options = EngineOptions(str(runtimes("packed") / "bge-m3"))
    ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    try:
        pool = ray_pipeline.choose_pool(None, None, "auto")
        assert pool == ray_pipeline.Pool(actors=2, threads=1, on_gpus=True)
        engine: Any = FakeBulkEngine
        identity = ray_pipeline.identify(options, pool, engine)
        folder = OutputFolder(str(tmp_path / "out"))
        job = open_job(folder, open_files(str(path)), Options(partition_rows=10), identity)
        entries = list(ray_pipeline.run(job, options, pool, engine))
    finally:
        ray.shutdown()
    assert sorted(entry.partition for entry in entries) == list(range(30))
    assert {entry.device for entry in entries} == {"cuda"}
    lengths = [len(text.ids) for text in tokenize(options.folder, texts, None)]
    tables = [pq.read_table(job.folder.vectors_path(number)) for number in range(30)]
    rows = [row for table in tables for row in table.to_pylist()]
    assert [(row["id"], row["dense"][0], row["tokens"]) for row in rows] == [
        (str(n), length, length) for n, length in enumerate(lengths)
    ]
