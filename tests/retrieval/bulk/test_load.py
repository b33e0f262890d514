"""Load the output of `bge bulk` into a collection."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_client import BGEError, Client
from bge_retrieval import HybridSearch, MigrationError, Plan, Schema, Store, index, load_probe
from bge_retrieval.bulk import finished_job
from bge_retrieval.bulk.finished_job import FinishedJob
from bge_retrieval.bulk.load import LOAD, load
from bulk_output import write_output
from commands import Run, report
from fakes.qdrant_server import PendingExchange, QdrantServer, disk_full
from fakes.scripted import reset
from points import assert_equal, contents

UPSERT = "PUT /collections/*/points"
Output = Callable[..., FinishedJob]


@pytest.fixture
def output(tmp_path: Path, worker: Client, passages: list[dict[str, Any]]) -> Output:
    """The job of `write_output` over the first 40 passages, or over `items`."""

    def make(items: Any = None, folder: str = "first", **options: Any) -> FinishedJob:
        (tmp_path / folder).mkdir()
        write_output(tmp_path / folder, worker, items or passages[:40], **options)
        return FinishedJob(str(tmp_path / folder / "out"))

    return make


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finished_job, "PAGE", 7)


@pytest.fixture
def server() -> Any:
    with QdrantServer() as server:
        yield server
        assert server.conformance_errors() == []


def indexing_threshold(store: Store) -> int | None:
    return store.info("c").config.optimizer_config.indexing_threshold


def is_recorded(store: Store) -> bool:
    return LOAD in (store.info("c").config.metadata or {})


def test_float32_vectors_are_those_of_index(
    store: Store, worker: Client, output: Output, passages: list[dict[str, Any]]
) -> None:
    index(store, worker, "indexed", passages[:40])
    report = load(store, output(), "c")
    assert (report.written, report.points, report.repeated) == (40, 40, 0)
    assert contents(store, "c") == contents(store, "indexed")
    assert store.info("c").config.metadata == store.info("indexed").config.metadata
    assert load_probe(store, "c") is not None


def test_float16_and_colbert_vectors_find_what_those_of_index_find(
    qdrant: Store, worker: Client, output: Output, passages: list[dict[str, Any]]
) -> None:
    schema = Schema(colbert=True, on_disk=True, quantization="scalar")
    index(qdrant, worker, "indexed", passages[:20], schema=schema)
    load(qdrant, output(passages[:20], dense_dtype="float16", colbert=True), "c", schema=schema)
    for plan in (Plan(), Plan(colbert=True)):
        loaded, indexed = (
            HybridSearch(qdrant, worker, name, plan).search("список", 10).hits
            for name in ("c", "indexed")
        )
        assert [hit.document_id for hit in loaded] == [hit.document_id for hit in indexed]
        np.testing.assert_allclose(
            [hit.score for hit in loaded], [hit.score for hit in indexed], atol=1e-3
        )


def test_a_second_run_writes_nothing_and_restores_what_has_changed(
    qdrant: Store, output: Output, passages: list[dict[str, Any]]
) -> None:
    job = output()
    load(qdrant, job, "c")
    before = contents(qdrant, "c")
    assert (report := load(qdrant, job, "c")).written == 0
    assert report.unchanged == report.points == 40
    qdrant.delete("c", [min(before, key=str)])  # in the middle of a partition
    qdrant.set_payload("c", [max(before, key=str)], {"text": "другой"})
    assert load(qdrant, job, "c").written == 2
    assert_equal(contents(qdrant, "c"), before)


def test_of_rows_with_the_same_id_the_last_one_is_kept(
    store: Store, worker: Client, output: Output
) -> None:
    items = [{"id": row % 30, "text": f"текст {row}"} for row in range(70)]
    index(store, worker, "indexed", items)
    job = output(items)
    report = load(store, job, "c", alias="live")
    assert (report.written, report.repeated, report.points) == (30, 40, 30)
    assert contents(store, "c") == contents(store, "indexed")
    assert load(store, job, "c").written == 0
    assert store.aliases() == {"live": "c"}


def test_indexing_is_deferred_and_a_failed_run_is_resumed(
    server: QdrantServer, output: Output
) -> None:
    job = output()
    with Store.open(url=server.url) as store:
        server.fail(disk_full, on=UPSERT, skip=4)
        with pytest.raises(BGEError, match="No space left"):
            load(store, job, "c", parallel=1)
        assert store.count("c") == 7 + 7 + 2 + 7
        assert (indexing_threshold(store), is_recorded(store)) == (20_000, True)
        server.calls.clear()
        report = load(store, job, "c", parallel=1)
        assert (report.unchanged, report.written) == (23, 17)
        lookups = server.routes().count("POST /collections/c/points")
        assert lookups == 1 + (1 + 3) + (1 + 2)  # the first partition is complete
        assert (indexing_threshold(store), is_recorded(store)) == (20_000, False)
    changes = [call.body for call in server.calls if call.method == "PATCH"]
    thresholds = [body["optimizers_config"] for body in changes if "optimizers_config" in body]
    assert thresholds == [{"indexing_threshold": 0}, {"indexing_threshold": 20_000}]


def test_points_of_two_jobs_are_all_compared(
    server: QdrantServer, output: Output, passages: list[dict[str, Any]]
) -> None:
    """A window of the second job may be current because the first one wrote it."""
    with Store.open(url=server.url) as store:
        server.fail(disk_full, on=UPSERT, skip=4)
        with pytest.raises(BGEError, match="No space left"):
            load(store, output(), "c", parallel=1)
        changed = output([{**passages[0], "text": "другой"}, *passages[1:40]], "second")
        server.fail(disk_full, on=UPSERT)
        with pytest.raises(BGEError, match="No space left"):
            load(store, changed, "c", parallel=1)
        assert load(store, changed, "c").written == 18
        assert "другой" in {payload["text"] for payload, _ in contents(store, "c").values()}


def test_a_process_killed_before_and_after_a_write_loses_nothing(
    server: QdrantServer, store: Store, output: Output, tmp_path: Path
) -> None:
    load(store, output(partition_rows=4), "c")
    arguments = ["index", "--from-parquet", str(tmp_path / "first" / "out"), "--collection", "c"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("BGE_")}
    env |= {"QDRANT_URL": server.url}

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bge_client", *arguments, "--alias", "live"]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

    def kill(exchange: PendingExchange) -> None:
        process.kill()
        reset(exchange)

    def apply_and_kill(exchange: PendingExchange) -> None:
        exchange.apply()
        kill(exchange)

    with Store.open(url=server.url) as qdrant:
        for fault in (kill, apply_and_kill):
            server.fail(fault, on=UPSERT, skip=2)
            process = start()
            process.communicate(timeout=60)
            assert (indexing_threshold(qdrant), is_recorded(qdrant)) == (0, True)
        points = qdrant.count("c")
        assert 0 < points < 40
        process = start()
        printed = json.loads(process.communicate(timeout=60)[0])
        assert (printed["unchanged"], printed["written"]) == (points, 40 - points)
        assert_equal(contents(qdrant, "c"), contents(store, "c"))
        assert (indexing_threshold(qdrant), is_recorded(qdrant)) == (20_000, False)
        assert qdrant.aliases() == {"live": "c"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sha256": "0" * 64}, "1 of 3 partitions are missing or do not have their checksum"),
        ({"sha256": None, "bytes": 1}, "1 of 3 partitions are missing .*, first 2"),
        ({"fingerprint": "another"}, "partition 2 has fingerprint another"),
    ],
)
def test_an_output_that_is_not_whole_is_refused(
    output: Output, tmp_path: Path, values: Any, message: str
) -> None:
    output()
    entry = tmp_path / "first" / "out" / "partitions" / "000002.json"
    entry.write_text(json.dumps(json.loads(entry.read_text()) | values))
    with pytest.raises(BGEError, match=message):
        FinishedJob(str(tmp_path / "first" / "out"))


def test_a_folder_without_a_finished_job_is_not_changed(output: Output, tmp_path: Path) -> None:
    with pytest.raises(BGEError, match="there is no output of `bge bulk`"):
        FinishedJob(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()
    output()
    shutil.rmtree(tmp_path / "first" / "out" / "partitions")
    with pytest.raises(BGEError, match="3 of 3 partitions are missing"):
        FinishedJob(str(tmp_path / "first" / "out"))
    assert not (tmp_path / "first" / "out" / "partitions").exists()


@pytest.mark.parametrize(
    ("indexed", "options", "schema", "message"),
    [
        ({}, {"text_fields": ("title",)}, Schema(), r"created with `text_fields` \('text',\)"),
        ({"max_length": 16}, {}, Schema(), "created with `max_length` 16. Given: None"),
        ({}, {}, Schema(colbert=True), "created with `colbert` False. Given: True"),
        ({"schema": Schema(colbert=True)}, {}, Schema(), "has no ColBERT vectors"),
        (None, {}, Schema(colbert=True), "has no ColBERT vectors"),
        (None, {"sparse": False}, Schema(), "has no sparse vectors"),
    ],
)
def test_other_options_are_refused_before_a_write(
    store: Store,
    worker: Client,
    output: Output,
    indexed: Any,
    options: Any,
    schema: Schema,
    message: str,
) -> None:
    if indexed is not None:
        index(store, worker, "c", [{"id": 1, "text": "море"}], **indexed)
    with pytest.raises(BGEError, match=message):
        load(store, output(**options), "c", schema=schema)
    assert store.exists("c") == (indexed is not None)


def test_an_alias_is_moved_only_to_a_collection_of_this_job(
    store: Store, worker: Client, output: Output
) -> None:
    index(store, worker, "c", [{"id": 1, "text": "море"}])
    job = output()
    for alias in ("c", "d"):
        with pytest.raises(BGEError, match=f"`{alias}` is a collection"):
            load(store, job, "d", alias=alias)
    assert not store.exists("d")
    with pytest.raises(MigrationError, match="`c` has 41 points, and the job has 40 ids"):
        load(store, job, "c", alias="live")
    assert store.aliases() == {}


def test_the_command_needs_no_endpoint_and_refuses_options_without_effect(
    run: Run, output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output([{"id": 1, "text": "море"}, {"id": 2}, {"id": 3, "text": "суша"}])
    monkeypatch.delenv("BGE_EMBEDDINGS_ENDPOINT")
    command = ["index", "--collection", "c", "--path", tmp_path / "data"]
    loading = [*command, "--from-parquet", tmp_path / "first" / "out"]
    printed = report(run(*loading, "--parallel", 2))
    assert (printed["written"], printed["failed"], printed["points"]) == (2, 1, 2)
    result = run(*loading, "--max-length", 16)
    assert (result.exit_code, "--max-length means nothing" in result.output) == (2, True)
    monkeypatch.setenv("BGE_EMBEDDINGS_ENDPOINT", "http://127.0.0.1:9")
    assert "--alias means nothing without" in run(*command, "--alias", "live").output
