"""A row that cannot be embedded becomes a dead letter, and the others are written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bge_client import BGEError, Embedding, InferenceError, SparseVector
from bge_retrieval.bulk.folder import OutputFolder
from bge_retrieval.bulk.manifest import Manifest, ModelIdentity, Options
from bge_retrieval.bulk.partition import Computed, collect, parse, write
from bge_retrieval.bulk.sources import Row
from bge_worker import errors

SECRET = "секрет"
MANIFEST = Manifest(ModelIdentity("m", None, "f1", 4), Options(), {}, [])
EMBEDDING = Embedding(
    np.arange(4, dtype=np.float32),
    SparseVector(np.array([3, 9], np.uint32), np.array([0.5, 0.25], np.float32)),
    np.eye(3, 4, dtype=np.float32),
    False,
    "f1",
)
POISON = [
    (b'{"text": "\xff"}', "the line is not UTF-8: invalid start byte"),
    (f'{{"text": "{SECRET}"'.encode(), "the line is not JSON: Expecting ',' delimiter"),
    (f'["{SECRET}"]'.encode(), "the document is not a JSON object"),
    (f'{{"title": "{SECRET}"}}'.encode(), "the document: no text at `text`"),
    (b'{"text": " "}', "the document: no text at `text`"),
    (b'{"text": "\\ud800"}', "the document must be valid Unicode. Given: a lone surrogate"),
    (b'{"text": NaN}', "the line is not JSON: NaN is not JSON"),
    (b'{"_id": -1, "text": "t"}', "the document: an id must be from 0 to 2^64 - 1. Given: -1"),
    (
        json.dumps({"text": "t" * 1_000_001}).encode(),
        "the document: the text must have at most 1000000 characters. Given: 1000001",
    ),
]


@pytest.mark.parametrize(("line", "reason"), POISON)
def test_a_poisoned_line_becomes_a_dead_letter(line: bytes, reason: str) -> None:
    rows = [Row(7, b'{"_id": 1, "text": "t"}'), Row(8, b"  "), Row(9, line)]
    documents = parse(0, {"file": "a.jsonl"}, rows, ["text"])
    assert documents.rows == 2  # a blank line is none
    assert documents.texts == ["t"]
    letter = {"file": "a.jsonl", "row": 9, "id": None, "reason": reason}
    assert documents.dead_letters == [letter]


def computed(*vectors: Embedding | Exception) -> Computed:
    count = len(vectors)
    return Computed(vectors, [5] * count, [True] * count, 5 * count, 1.5, "f1", "cpu", "a")


@pytest.mark.parametrize("kind", [InferenceError, errors.InferenceError])
def test_a_text_that_fails_becomes_a_dead_letter(tmp_path: Path, kind: type[Exception]) -> None:
    rows = [Row(n, {"_id": n, "text": f"t{n}", "tags": ["я"]}) for n in range(3)]
    documents = parse(4, {}, rows, ["text"])
    result = collect(MANIFEST, documents, computed(EMBEDDING, kind("not finite"), EMBEDDING))
    folder = OutputFolder(str(tmp_path))
    entry = write(folder, MANIFEST, result)
    assert entry == folder.entry(4)
    assert (entry.rows, entry.written, entry.failed, entry.truncated) == (3, 2, 1, 2)
    letters = (tmp_path / "dead-letters" / "000004.jsonl").read_text().splitlines()
    reason = "InferenceError: not finite"
    assert [json.loads(line) for line in letters] == [{"row": 1, "id": "1", "reason": reason}]
    table = pq.read_table(folder.vectors_path(4))
    assert table.schema.metadata[b"fingerprint"] == b"f1"
    assert table.to_pylist()[1] == {
        "id": "2",
        "payload": '{"_id":2,"text":"t2","tags":["я"]}',
        "dense": [0, 1, 2, 3],
        "sparse": {"indices": [3, 9], "values": [0.5, 0.25]},
        "tokens": 5,
        "truncated": True,
    }


def test_a_partition_without_a_text_that_can_be_embedded_is_written(tmp_path: Path) -> None:
    documents = parse(0, {}, [Row(0, b"{}")], ["text"])
    for colbert in (False, True):
        manifest = replace(MANIFEST, options=Options(colbert=colbert, colbert_pool=2))
        entry = write(
            OutputFolder(str(tmp_path)), manifest, collect(manifest, documents, computed())
        )
        assert (entry.rows, entry.written, entry.failed) == (1, 0, 1)
        assert pq.read_table(tmp_path / "vectors" / "000000.parquet").num_rows == 0


def test_texts_that_all_fail_are_the_engine_s_fault() -> None:
    documents = parse(0, {}, [Row(n, {"text": "t"}) for n in range(10)], ["text"])
    with pytest.raises(BGEError, match=r"all 10 texts of partition 0 .* InferenceError: broken"):
        collect(MANIFEST, documents, computed(*[InferenceError("broken")] * 10))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_colbert_vectors_are_pooled_when_they_are_written(tmp_path: Path, dtype: str) -> None:
    options = Options(dense_dtype=dtype, sparse=False, colbert=True, colbert_pool=3)
    manifest = replace(MANIFEST, options=options)
    documents = parse(0, {}, [Row(n, {"text": "t"}) for n in range(2)], ["text"])
    folder = OutputFolder(str(tmp_path))
    write(folder, manifest, collect(manifest, documents, computed(EMBEDDING, EMBEDDING)))
    rows = pq.read_table(folder.vectors_path(0)).to_pylist()
    mean = [np.float16(3**-0.5)] * 3 + [0]
    assert [row["colbert"] for row in rows] == [[mean], [mean]]
    assert all("sparse" not in row for row in rows)
