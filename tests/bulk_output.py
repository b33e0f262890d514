"""The output of `bge bulk` through an endpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bge_client import Client
from bge_retrieval.bulk import endpoint_pipeline
from bge_retrieval.bulk.folder import OutputFolder
from bge_retrieval.bulk.job import open_job
from bge_retrieval.bulk.manifest import Options
from bge_retrieval.bulk.sources import open_files


def write_output(
    folder: Path, client: Client, items: Sequence[dict[str, Any]], **options: Any
) -> None:
    """Embed these documents into `folder`/out. By default in float32, 16 rows a partition."""
    source = folder / "corpus.jsonl"
    source.write_text("".join(f"{json.dumps(item)}\n" for item in items), "utf-8")
    settings = Options(**({"dense_dtype": "float32", "partition_rows": 16} | options))
    model = endpoint_pipeline.identify(client)
    job = open_job(OutputFolder(str(folder / "out")), open_files(str(source)), settings, model)
    assert len([*endpoint_pipeline.run(job, client)]) == len(job.manifest.partitions)
