"""`bge bulk --endpoint` with the real worker in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from bge_client import BGEError, Client, ConfigurationError, InferenceError, Probe
from bge_retrieval.bulk import endpoint_pipeline
from bge_retrieval.bulk.folder import OutputFolder
from bge_retrieval.bulk.job import Job, open_job
from bge_retrieval.bulk.manifest import Options
from bge_retrieval.bulk.sources import open_files

Run = Callable[..., Result]


@pytest.fixture
def corpus_file(passages: list[dict[str, Any]], tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(passage) + "\n" for passage in passages[:40]))
    return path


def rows_of(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "vectors").iterdir())
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def test_the_vectors_are_the_client_s(
    run: Run, worker: Client, passages: list[dict[str, Any]], corpus_file: Path, tmp_path: Path
) -> None:
    arguments = ["--dtype", "float32", "--colbert", "--partition-rows", 7, "--max-length", 32]
    result = run("bulk", corpus_file, "--to", tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "out")
    texts = [passage["text"] for passage in passages[:40]]
    expected = worker.embed(texts, sparse=True, colbert=True, max_length=32, dtype="float32")
    for row, passage, embedding in zip(rows, passages[:40], expected, strict=True):
        assert json.loads(row["payload"]) == passage
        np.testing.assert_allclose(row["dense"], embedding.dense, atol=1e-5)
        assert row["sparse"]["indices"] == embedding.sparse.indices.tolist()  # type: ignore[union-attr]
        np.testing.assert_allclose(row["colbert"], embedding.colbert, atol=1e-3)
        assert row["truncated"] == embedding.truncated
    report = json.loads(result.stdout)
    assert report["written"] == 40
    assert report["tokens"] == expected.usage.prompt_tokens
    manifest = OutputFolder(str(tmp_path / "out")).manifest()
    assert manifest is not None
    assert manifest.model.probe is not None
    assert Probe.from_dict(manifest.model.probe).fingerprint == expected.fingerprint


def test_a_second_run_sends_nothing_and_writes_nothing(
    run: Run, corpus_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["bulk", corpus_file, "--to", out, "--partition-rows", 7]
    assert run(*command).exit_code == 0
    (out / "partitions" / "000003.json").unlink()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    report = json.loads(run(*command).stdout)
    assert (report["rows"], report["this_run"]["rows"]) == (40, 7)
    changed = {path for path in times if path.stat().st_mtime_ns != times[path]}
    assert changed == {out / "vectors" / "000003.parquet"}
    refused = run("bulk", corpus_file, "--to", out, "--no-sparse")
    assert refused.exit_code == 2
    assert "was started with `sparse` True. Given: False" in refused.stderr


def test_a_poisoned_row_does_not_stop_the_job(run: Run, corpus_file: Path, tmp_path: Path) -> None:
    with corpus_file.open("a") as file:
        file.write('{"text": \n')
    result = run("bulk", corpus_file, "--to", tmp_path / "out")
    assert result.exit_code == 0
    assert "1 rows could not be embedded" in result.stderr
    (letter,) = (tmp_path / "out" / "dead-letters" / "000000.jsonl").read_text().splitlines()
    assert json.loads(letter)["row"] == 40


def test_a_job_without_a_row_that_can_be_embedded_fails(
    run: Run, corpus_file: Path, tmp_path: Path
) -> None:
    result = run("bulk", corpus_file, "--to", tmp_path / "out", "--text-field", "body")
    assert result.exit_code == 1
    assert "no row could be embedded" in result.stderr
    assert json.loads(result.stdout)["failed"] == 40


def test_options_without_effect_are_refused(run: Run, corpus_file: Path, tmp_path: Path) -> None:
    source = ["bulk", corpus_file, "--to", tmp_path / "out"]
    for options, problem in (
        (["--actors", 2], "--actors means nothing without --model"),
        (["--model", "m", "--in-flight", 2], "--in-flight means nothing with --model"),
        (["--colbert-pool", 2], "--colbert-pool needs --colbert"),
        (["--max-length", 2], "--max-length must be from 3 to 8192. Given: 2"),
        (["--collection", "c"], "pass either SOURCE or --collection"),
        (["--path", "data"], "--path means nothing with SOURCE"),
        (["--to", corpus_file], "--to must not lie in SOURCE"),
    ):
        result = run(*source, *options)
        assert result.exit_code == 2
        assert problem in result.stderr


def test_a_folder_without_collections_is_not_created(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "data"
    result = run("bulk", "--collection", "c", "--path", path, "--to", tmp_path / "out")
    assert result.exit_code == 2
    assert "there are no collections in" in result.stderr
    assert not path.exists()


class RefusingClient:
    """Fails on requests that hold a poisoned text, as a worker whose result is not finite."""

    def __init__(self, client: Client, error: BGEError) -> None:
        self._client = client
        self._error = error
        self.sent: list[int] = []

    def embed(self, texts: list[str], **options: Any) -> Any:
        self.sent.append(len(texts))
        if any("poison" in text for text in texts):
            raise self._error
        return self._client.embed(texts, **options)


@pytest.fixture
def job(worker: Client, tmp_path: Path) -> Job:
    texts = [f"море {n}" for n in range(64)]
    texts[37] = "poison"
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    identity = endpoint_pipeline.identify(worker)
    return open_job(OutputFolder(str(tmp_path / "out")), open_files(str(path)), Options(), identity)


def test_a_text_that_the_worker_cannot_compute_is_found_by_halves(
    job: Job, worker: Client, tmp_path: Path
) -> None:
    client = RefusingClient(worker, InferenceError("not finite"))
    (entry,) = endpoint_pipeline.run(job, client)  # type: ignore[arg-type]
    assert (entry.written, entry.failed) == (63, 1)
    (letter,) = (tmp_path / "out" / "dead-letters" / "000000.jsonl").read_text().splitlines()
    assert json.loads(letter)["row"] == 37
    assert json.loads(letter)["reason"] == "InferenceError: not finite"
    assert len(client.sent) == 13  # two for each halving


def test_an_error_of_the_endpoint_stops_the_job(job: Job, worker: Client, tmp_path: Path) -> None:
    client = RefusingClient(worker, ConfigurationError("no such endpoint"))
    with pytest.raises(ConfigurationError, match="no such endpoint"):
        list(endpoint_pipeline.run(job, client))  # type: ignore[arg-type]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {".lock", "manifest.json"}
