"""`retrieval/examples/read_vectors.py`: other readers of the output of `bge bulk`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_client import Client
from bulk_output import write_output
from commands import EXAMPLES


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("read_vectors", EXAMPLES / "read_vectors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_each_reader_finds_the_same_vectors(
    example: Any, worker: Client, passages: list[dict[str, Any]], tmp_path: Path, dtype: str
) -> None:
    folder = str(tmp_path / "out")
    write_output(tmp_path, worker, passages[:20], dense_dtype=dtype, partition_rows=8)
    vectors = example.pyarrow_vectors(folder)
    expected = worker.embed([passage["text"] for passage in passages[:20]]).dense
    np.testing.assert_allclose(vectors, expected, atol=1e-6 if dtype == "float32" else 1e-3)
    assert vectors.dtype == example.pandas_vectors(folder).dtype == dtype
    np.testing.assert_array_equal(vectors, example.pandas_vectors(folder))
    by_duckdb = example.duckdb_nearest(folder, vectors[3])
    by_qdrant = example.qdrant_nearest(folder, vectors[3])
    assert [id for id, _ in by_duckdb] == [id for id, _ in by_qdrant]
    np.testing.assert_allclose([s for _, s in by_duckdb], [s for _, s in by_qdrant], atol=1e-5)
