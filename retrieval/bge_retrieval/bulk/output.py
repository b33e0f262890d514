"""The Parquet file of a partition: a row for each text that was embedded.

id string · payload string (JSON) · dense fixed_size_list[D] · sparse struct of two lists ·
colbert list of fixed_size_list[D] · tokens int32 (null where an endpoint does not count them
by text) · truncated bool
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .manifest import Manifest

Array = NDArray[Any]
COLBERT_DTYPE = "float16"
ARROW_TYPES = {"float16": pa.float16(), "float32": pa.float32()}


class Sparse(Protocol):
    @property
    def indices(self) -> Array: ...
    @property
    def values(self) -> Array: ...


class Vectors(Protocol):
    """The vectors of a text: of the client or of the engine."""

    @property
    def dense(self) -> Array | None: ...
    @property
    def sparse(self) -> Sparse | None: ...
    @property
    def colbert(self) -> Array | None: ...


def schema(manifest: Manifest) -> pa.Schema:
    options, dimensions = manifest.options, manifest.model.dimensions
    fields = {
        "id": pa.string(),
        "payload": pa.string(),
        "dense": pa.list_(ARROW_TYPES[options.dense_dtype], dimensions),
    }
    if options.sparse:
        lists = {"indices": pa.list_(pa.uint32()), "values": pa.list_(pa.float32())}
        fields["sparse"] = pa.struct(list(lists.items()))
    if options.colbert:
        fields["colbert"] = pa.list_(pa.list_(ARROW_TYPES[COLBERT_DTYPE], dimensions))
    fields |= {"tokens": pa.int32(), "truncated": pa.bool_()}
    metadata = {"fingerprint": manifest.model.fingerprint, "model": manifest.model.model}
    return pa.schema(list(fields.items()), metadata)


def table(
    manifest: Manifest,
    ids: Sequence[str],
    payloads: Sequence[str],
    vectors: Sequence[Vectors],
    tokens: Sequence[int | None],
    truncated: Sequence[bool],
) -> pa.Table:
    """Return the rows of a partition. ColBERT vectors are not pooled yet."""
    options, dimensions = manifest.options, manifest.model.dimensions
    dense = np.array([row.dense for row in vectors], options.dense_dtype)
    columns: list[pa.Array] = [
        pa.array(ids, pa.string()),
        pa.array(payloads, pa.string()),
        _fixed_size_lists(dense, dimensions),
    ]
    if options.sparse:
        sparse = [row.sparse for row in vectors if row.sparse is not None]
        indices = _lists([row.indices for row in sparse], np.dtype(np.uint32))
        values = _lists([row.values for row in sparse], np.dtype(np.float32))
        columns.append(pa.StructArray.from_arrays([indices, values], ["indices", "values"]))
    if options.colbert:
        colbert = [row.colbert for row in vectors if row.colbert is not None]
        columns.append(_colbert(colbert, dimensions))
    columns += [pa.array(tokens, pa.int32()), pa.array(truncated, pa.bool_())]
    return pa.Table.from_arrays(columns, schema=schema(manifest))


def pooled(rows: pa.Table, factor: int) -> pa.Table:
    """Return a table with the ColBERT vectors of each text pooled."""
    # SciPy takes a quarter of a second to import: not in every process of a job.
    from .pooling import pool

    column = rows["colbert"].combine_chunks()
    dimensions = column.type.value_type.list_size
    vectors = column.values.values.to_numpy().reshape(-1, dimensions)
    texts = [
        pool(vectors[start:stop], factor) for start, stop in pairwise(column.offsets.to_pylist())
    ]
    index = rows.schema.get_field_index("colbert")
    return rows.set_column(index, rows.schema.field(index), _colbert(texts, dimensions))


def parquet(rows: pa.Table) -> bytes:
    """Return the file. zstd takes a tenth off float16 vectors, and with their bytes apart a
    fifth off float32. DuckDB does not read float16 with its bytes apart."""
    split = ["sparse.values.list.element"] if "sparse" in rows.schema.names else []
    if rows.schema.field("dense").type.value_type == pa.float32():
        split.append("dense.list.element")
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows, sink, compression="zstd", use_dictionary=False, use_byte_stream_split=split or False
    )
    return bytes(sink.getvalue())


def _fixed_size_lists(vectors: Array, dimensions: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dimensions)


def _lists(rows: Sequence[Array], dtype: np.dtype[Any]) -> pa.Array:
    values = np.concatenate([np.empty(0, dtype), *(row.astype(dtype) for row in rows)])
    return pa.ListArray.from_arrays(_offsets(rows), pa.array(values))


def _colbert(rows: Sequence[Array], dimensions: int) -> pa.Array:
    empty = np.empty((0, dimensions), COLBERT_DTYPE)
    vectors = np.concatenate([empty, *(row.astype(COLBERT_DTYPE) for row in rows)])
    return pa.ListArray.from_arrays(_offsets(rows), _fixed_size_lists(vectors, dimensions))


def _offsets(rows: Sequence[Array]) -> pa.Array:
    return pa.array(np.cumsum([0, *map(len, rows)]), pa.int32())
