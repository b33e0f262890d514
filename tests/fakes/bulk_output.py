"""An output folder of `bge bulk`, written from an endpoint's answers."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bge_client import Client, Embedding, Probe
from bge_retrieval.bulk.folder import OutputFolder
from bge_retrieval.bulk.manifest import Entry, Manifest, ModelIdentity, Options
from bge_retrieval.documents import Document, parse_documents


def write_output(
    folder: Path, client: Client, items: Sequence[dict[str, Any]], options: Options, **wrong: Any
) -> None:
    """Write a job over these documents. `wrong` replaces values of its last entry; `missing` leaves
    it out."""
    documents = [*parse_documents(items, options.text_fields)]
    embeddings = client.embed(
        [document.text for document in documents],
        sparse=True,
        colbert=options.colbert,
        dtype="float32",
        max_length=options.max_length,
    )
    assert embeddings.dense is not None
    probe = Probe.record(client).as_dict()
    dimensions = embeddings.dense.shape[1]
    model = ModelIdentity(embeddings.model, None, embeddings.fingerprint, dimensions, probe)
    starts = range(0, len(documents), options.partition_rows)
    partitions = [
        {"file": "corpus.jsonl", "first_row": start, "rows": options.partition_rows}
        for start in starts
    ]
    output = OutputFolder(str(folder))
    output.write_manifest(Manifest(model, options, {"kind": "jsonl"}, partitions))
    for number, start in enumerate(starts):
        rows = slice(start, start + options.partition_rows)
        data = parquet(documents[rows], [*embeddings][rows], options)
        output.write_vectors(number, data)
        values = wrong if start == starts[-1] else {}
        if "missing" not in values:
            finished = entry(number, len(documents[rows]), data, model.fingerprint)
            output.write_entry(replace(finished, **values))


def entry(partition: int, rows: int, data: bytes, fingerprint: str) -> Entry:
    digest = hashlib.sha256(data).hexdigest()
    counts = {"rows": rows, "written": rows, "failed": 0, "truncated": 0, "tokens": 9 * rows}
    identity = {"fingerprint": fingerprint, "device": "cpu", "actor": "a", "sha256": digest}
    return Entry(partition=partition, seconds=0.1, bytes=len(data), **counts, **identity)


def parquet(
    documents: Sequence[Document], embeddings: Sequence[Embedding], options: Options
) -> bytes:
    """Return the Parquet file of these rows."""
    dtype = np.dtype(options.dense_dtype)
    dimensions = len(embeddings[0].dense)
    dense = np.stack([embedding.dense for embedding in embeddings]).astype(dtype)
    vectors = pa.list_(pa.from_numpy_dtype(dtype), dimensions)
    columns = {
        "id": [str(document.id) for document in documents],
        "payload": [json.dumps(document.payload, ensure_ascii=False) for document in documents],
        "dense": pa.FixedSizeListArray.from_arrays(dense.ravel(), type=vectors),
        "tokens": pa.array([9] * len(documents), pa.int32()),
        "truncated": [embedding.truncated for embedding in embeddings],
    }
    if options.sparse:
        columns["sparse"] = pa.array(
            [
                {"indices": embedding.sparse.indices, "values": embedding.sparse.values}
                for embedding in embeddings
            ],
            pa.struct({"indices": pa.list_(pa.uint32()), "values": pa.list_(pa.float32())}),
        )
    if options.colbert:
        halves = [embedding.colbert.astype(np.float16) for embedding in embeddings]
        columns["colbert"] = pa.array(
            [list(vectors) for vectors in halves], pa.list_(pa.list_(pa.float16(), dimensions))
        )
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=5, compression={"payload": "zstd"})
    return file.getvalue()
