"""A job in its folder: what is finished, and what a resumed run refuses."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from bge_client import ConfigurationError, Embedding, FingerprintError, SparseVector
from bge_retrieval.bulk.folder import OutputFolder
from bge_retrieval.bulk.job import Job, check_started, open_job
from bge_retrieval.bulk.manifest import Entry, ModelIdentity, Options
from bge_retrieval.bulk.partition import Computed, collect, parse, write
from bge_retrieval.bulk.sources import Source, open_files

MODEL = ModelIdentity("m", None, "f1", 4)
OPTIONS = Options(partition_rows=2)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(f'{{"_id": {n}, "text": "t{n}"}}\n' for n in range(5)))
    return open_files(str(path))


@pytest.fixture
def job(source: Source, tmp_path: Path) -> Job:
    """A job of three partitions, all finished."""
    job = open_job(OutputFolder(str(tmp_path / "out")), source, OPTIONS, MODEL)
    for group in job.pending(1):
        run(job, group.numbers[0])
    return reopened(job)


def reopened(job: Job) -> Job:
    return open_job(OutputFolder(job.folder.path), job.source, OPTIONS, MODEL)


def run(job: Job, partition: int) -> Entry:
    part = job.manifest.partitions[partition]
    (rows,) = job.source.read([part])
    documents = parse(partition, part, rows, ["text"])
    sparse = SparseVector(np.array([3], np.uint32), np.array([0.5], np.float32))
    vectors = [Embedding(np.ones(4, np.float32), sparse, None, False, "f1")] * len(documents.ids)
    tokens = [3] * len(vectors)
    computed = Computed(vectors, tokens, [False] * len(vectors), sum(tokens), 1.0, "f1", "cpu", "a")
    return write(job.folder, job.manifest, collect(job.manifest, documents, computed))


def pending(job: Job) -> list[int]:
    return [number for group in job.pending(16) for number in group.numbers]


def test_a_finished_job_has_nothing_pending(job: Job) -> None:
    assert pending(job) == []
    assert [job.finished[number].rows for number in range(3)] == [2, 2, 1]


def cut_entry(folder: Path) -> None:
    path = folder / "partitions" / "000001.json"
    path.write_bytes(path.read_bytes()[:-9])


def cut_vectors(folder: Path) -> None:
    path = folder / "vectors" / "000001.parquet"
    path.write_bytes(path.read_bytes()[:-9])


def change_vectors(folder: Path) -> None:
    path = folder / "vectors" / "000001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove_vectors(folder: Path) -> None:
    (folder / "vectors" / "000001.parquet").unlink()


@pytest.mark.parametrize("damage", [cut_entry, cut_vectors, change_vectors, remove_vectors])
def test_a_partition_that_is_not_whole_is_computed_again(job: Job, damage: Any) -> None:
    path = Path(job.folder.path, "vectors", "000001.parquet")
    before = path.read_bytes()
    damage(Path(job.folder.path))
    again = reopened(job)
    assert pending(again) == [1]
    run(again, 1)
    assert path.read_bytes() == before
    assert pending(reopened(job)) == []


def test_an_object_store_gets_the_same_files(job: Job) -> None:
    """An object store shows an object when it is complete."""
    folder = OutputFolder(job.folder.path)
    folder._is_disk = False
    again = replace(job, folder=folder, finished={})
    assert run(again, 1) == job.finished[1]
    assert pending(reopened(job)) == []


def test_what_a_killed_process_left_is_removed(job: Job) -> None:
    left = Path(job.folder.path, "vectors", "000001.parquet.0a.tmp")
    left.write_text("half")
    assert pending(reopened(job)) == []
    assert not left.exists()


def test_a_full_disk_is_named_and_leaves_nothing_half_written(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device: .*000001\.parquet"):
        run(job, 1)
    assert not list(Path(job.folder.path).rglob("*.tmp"))
    assert pending(reopened(job)) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dense_dtype": "float32"}, "`dense_dtype` float16. Given: float32"),
        ({"sparse": False}, "`sparse` True. Given: False"),
        ({"colbert": True}, "`colbert` False. Given: True"),
        ({"colbert_pool": 2}, "`colbert_pool` 1. Given: 2"),
        ({"max_length": 512}, "`max_length` None. Given: 512"),
        ({"text_fields": ("title", "text")}, "`text_fields` text. Given: title, text"),
        ({"partition_rows": 3}, "`partition_rows` 2. Given: 3"),
    ],
)
def test_a_changed_option_is_refused(job: Job, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        check_started(job.folder, job.source, replace(OPTIONS, **changes))


def test_a_changed_source_is_refused(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    size = path.stat().st_size
    path.write_text(path.read_text() + "{}\n")
    sentence = f"`files` corpus.jsonl of {size} bytes. Given: corpus.jsonl of {size + 3} bytes"
    with pytest.raises(ConfigurationError, match=sentence):
        check_started(job.folder, open_files(str(path)), OPTIONS)
    (tmp_path / "more.jsonl").write_text("{}\n")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ConfigurationError, match=r"no more\.jsonl\. Given: more\.jsonl of 3 bytes"):
        check_started(job.folder, open_files(f"{tmp_path}/*.jsonl"), OPTIONS)


def test_another_model_is_refused(job: Job) -> None:
    with pytest.raises(FingerprintError, match=r"fingerprint f1\. Given: m, f2"):
        open_job(job.folder, job.source, OPTIONS, replace(MODEL, fingerprint="f2"))


def test_a_file_that_is_no_manifest_is_refused(job: Job) -> None:
    path = Path(job.folder.path, "manifest.json")
    for text, problem in (("{}", "not the manifest"), ('{"format": 2}', "format 2"), ("[", "not")):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=problem):
            job.folder.manifest()
