"""The partitions of every source hold every row once, in order."""

from __future__ import annotations

import pickle
from datetime import date
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs
from qdrant_client import models

from bge_client import ConfigurationError
from bge_retrieval import Store
from bge_retrieval.bulk import sources
from bge_retrieval.bulk.partition import parse
from bge_retrieval.bulk.sources import QdrantSource, Row, Source, open_files


def read_all(source: Source, rows: int, size: int, skip: int = 0) -> list[Row]:
    """Read the parts in groups of `size`, without each `skip`-th if it is not 0."""
    parts = [part for n, part in enumerate(source.parts(rows), 1) if not skip or n % skip]
    groups = [parts[start : start + size] for start in range(0, len(parts), size)]
    pages = [page for group in groups for page in source.read(group)]
    assert [len(page) for page in pages] == [part["rows"] for part in parts]
    assert all(len(page) <= rows for page in pages)
    return [row for page in pages for row in page]


@settings(deadline=None)
@given(
    lines=st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), min_size=1),
    ends=st.booleans(),
    rows=st.integers(1, 7),
    size=st.integers(1, 3),
    chunk=st.integers(1, 9),
)
def test_jsonl_is_cut_at_line_ends(
    lines: list[bytes], ends: bool, rows: int, size: int, chunk: int
) -> None:
    data = b"\n".join(lines) + (b"\n" if ends else b"")
    expected = data.removesuffix(b"\n").split(b"\n") if data else []
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "CHUNK", chunk)
        path = Path(folder, "a.jsonl")
        path.write_bytes(data)
        read = read_all(open_files(str(path)), rows, size)
    assert [row.value for row in read] == expected
    assert [row.number for row in read] == list(range(len(expected)))


@settings(deadline=None)
@given(
    count=st.integers(1, 40),
    group=st.integers(1, 12),
    rows=st.integers(1, 9),
    size=st.integers(1, 5),
    batch=st.integers(1, 9),
    skip=st.sampled_from([0, 2, 3]),
)
def test_parquet_is_cut_by_rows_across_row_groups(
    count: int, group: int, rows: int, size: int, batch: int, skip: int
) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "BATCH_ROWS", batch)
        path = Path(folder, "a.parquet")
        pq.write_table(pa.table({"text": [str(n) for n in range(count)]}), path, group)
        read = read_all(open_files(str(path)), rows, size, skip)
    kept = [n for n in range(count) if not skip or (n // rows + 1) % skip]
    assert [(row.number, row.value) for row in read] == [(n, {"text": str(n)}) for n in kept]


def test_rows_of_parquet_are_json(tmp_path: Path) -> None:
    uuids = pa.array([UUID(int=7).bytes], pa.binary(16))
    columns = {
        "id": pa.ExtensionArray.from_storage(pa.uuid(), uuids),
        "day": pa.array([date(2026, 1, 2)]),
        "price": pa.array([Decimal("1.50")]),
        "nested": pa.array([{"days": [date(2026, 1, 2)], "n": 1}]),
        "map": pa.array([{"a": 1}], pa.map_(pa.string(), pa.int64())),
        "category": pa.array(["x"]).dictionary_encode(),
        "null": pa.array([None], pa.int64()),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (row,) = read_all(open_files(str(tmp_path)), 5, 1)
    assert row.value == {
        "id": "00000000-0000-0000-0000-000000000007",
        "day": "2026-01-02",
        "price": "1.50",
        "nested": {"days": ["2026-01-02"], "n": 1},
        "map": {"a": 1},
        "category": "x",
        "null": None,
    }


def test_a_row_of_parquet_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    data = pa.py_buffer(b"a\xffb")
    offsets = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 3, [None, offsets, data])
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    rows = read_all(open_files(str(tmp_path)), 5, 1)
    assert [rows[0].value, rows[2].value] == [{"text": "a"}, {"text": "b"}]
    (letter,) = parse(0, {}, rows, ["text"]).dead_letters
    assert letter == {"row": 1, "id": None, "reason": "the row is not UTF-8: invalid start byte"}


@pytest.mark.parametrize("data", [b"", b"not a table"])
def test_a_file_that_is_not_parquet_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(ConfigurationError, match=r"a\.parquet cannot be read as Parquet"):
        open_files(str(tmp_path)).parts(5)


def test_the_options_of_a_uri_stay_with_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an object store, they are its address and region."""
    (tmp_path / "a.jsonl").write_text("{}\n")
    stored = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(sources, "file_system", lambda path: (stored, "a.jsonl"))
    source = open_files("s3://key:secret@bucket/a.jsonl?endpoint_override=127.0.0.1")
    monkeypatch.undo()
    source = pickle.loads(pickle.dumps(source))
    assert [row.value for row in read_all(source, 5, 1)] == [b"{}"]


def test_a_collection_is_cut_by_ids(qdrant: Store, qdrant_url: str) -> None:
    ids = [7, 2, *(f"{n:08x}-0000-0000-0000-000000000000" for n in (9, 3, 5)), 11, 1]
    qdrant.create_collection("c", vectors_config={})
    points = [models.PointStruct(id=id, vector={}, payload={"text": str(id)}) for id in ids]
    qdrant.upsert("c", points)
    source = pickle.loads(pickle.dumps(QdrantSource("c", url=qdrant_url, path=None, api_key=None)))
    read = read_all(source, 3, 1)
    assert [row.id for row in read] == [1, 2, 7, 11, *sorted(i for i in ids if type(i) is str)]
    assert [row.value for row in read] == [{"text": str(row.id)} for row in read]
    # A point that was deleted since is missing from its partition, and moves no other.
    parts = source.parts(3)
    qdrant.delete("c", [7])
    assert [[row.id for row in page] for page in source.read(parts[:1])] == [[1, 2]]
    source.store.close()


def test_a_folder_and_a_glob_hold_their_files_in_order(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a/1.jsonl", "a/3.ndjson"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "README.md").write_text("no document")
    names = [file.name for file in open_files(str(tmp_path)).files]
    assert names == ["a/1.jsonl", "a/3.ndjson", "b/2.jsonl"]
    in_glob = open_files(f"{tmp_path}/*/*.jsonl")
    assert [file.name for file in in_glob.files] == ["a/1.jsonl", "b/2.jsonl"]
    assert [part["file"] for part in in_glob.parts(9)] == ["a/1.jsonl", "b/2.jsonl"]
    with pytest.raises(ConfigurationError, match="holds no file"):
        open_files(f"{tmp_path}/*.jsonl")  # those are deeper


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (["a.txt"], "holds no file"),
        (["a.jsonl", "b.parquet"], "holds both"),
        ([], "does not exist"),
    ],
)
def test_a_source_is_of_one_kind(tmp_path: Path, files: list[str], problem: str) -> None:
    folder = tmp_path / "source"
    for name in files:
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("")
    with pytest.raises(ConfigurationError, match=problem):
        open_files(str(folder))
