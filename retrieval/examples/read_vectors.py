"""Read the output of `bge bulk` with pyarrow, pandas and DuckDB, and search it in Qdrant.

    pip install './retrieval[parquet]' duckdb pandas
    python retrieval/examples/read_vectors.py OUT

Each prints the documents nearest to the first one. The folder must be one of a finished job: an
unfinished one may hold files of partitions that have no entry.
"""

from __future__ import annotations

import sys

import duckdb
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow.dataset as ds
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from bge_retrieval import Store
from bge_retrieval.bulk.finished_job import FinishedJob
from bge_retrieval.bulk.load import load

LIMIT = 3


def pyarrow_vectors(folder: str) -> NDArray[np.floating]:
    """Return the dense vectors [N, D], in float16 or float32 as they were written."""
    column = ds.dataset(f"{folder}/vectors").to_table(["dense"])["dense"].combine_chunks()
    floats: NDArray[np.floating] = column.flatten().to_numpy()
    return floats.reshape(len(column), -1)


def pandas_vectors(folder: str) -> NDArray[np.floating]:
    """Return the dense vectors [N, D]. pandas holds an array for each row."""
    return np.stack(pd.read_parquet(f"{folder}/vectors", columns=["dense"])["dense"])


def duckdb_nearest(folder: str, query: NDArray[np.floating]) -> list[tuple[str, float]]:
    """Return ids and cosines. DuckDB reads float16 as FLOAT, and both as lists without a size."""
    vector = f"FLOAT[{len(query)}]"
    statement = f"""
        SELECT id, array_cosine_similarity(dense::{vector}, ?::{vector}) AS score
        FROM read_parquet(?) ORDER BY score DESC LIMIT {LIMIT}"""
    return duckdb.execute(statement, [query.tolist(), f"{folder}/vectors/*.parquet"]).fetchall()


def qdrant_nearest(folder: str, query: NDArray[np.floating]) -> list[tuple[str, float]]:
    """Load the folder into Qdrant's local mode, in memory. Return ids and cosines."""
    with Store(QdrantClient(":memory:")) as store:
        load(store, FinishedJob(folder), "documents")
        request = models.QueryRequest(query=query.tolist(), using="dense", limit=LIMIT)
        return [(str(hit.id), hit.score) for hit in store.query_points("documents", request)]


def main(folder: str) -> None:
    vectors = pyarrow_vectors(folder)
    print("pyarrow", vectors.dtype, vectors.shape)
    print("pandas ", pandas_vectors(folder).dtype, pandas_vectors(folder).shape)
    print("duckdb ", duckdb_nearest(folder, vectors[0]))
    print("qdrant ", qdrant_nearest(folder, vectors[0]))


if __name__ == "__main__":
    main(sys.argv[1])
