"""`make test-bulk-kill`: `bge bulk` as processes that are killed, and then run again.

Every run embeds with the miniature, slowly. The output must be that of an undisturbed run, byte by
byte, and no partition that has an entry may be computed again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="make test-bulk-kill")

from ray._private.node import Node
from ray.cluster_utils import Cluster

from bge_builder.convert import convert
from fakes.bulk_job import BulkJob, Victim

ROWS, PARTITION_ROWS = 1000, 25
PARTITIONS = ROWS // PARTITION_ROWS
pytestmark = pytest.mark.filterwarnings("default")  # Ray's own
VICTIMS: tuple[Victim, ...] = ("actor", "writer", "node", "driver", "all")
POISON = {
    103: b'{"_id": 1, "text": ',
    204: b'{"text": "\xff"}',
    305: b"[1, 2]",
    306: b'{"_id": 306}',
    307: b'{"_id": 307, "text": " "}',
    408: rb'{"_id": 408, "text": "\ud800"}',
    509: b'{"_id": -1, "text": "word"}',
    610: b'{"_id": 610, "text": "word", "score": NaN}',
    711: b'{"_id": 711, "text": "%s"}' % (b"word " * 200_001),
    812: b"[" * 100_000,
    913: b'{"_id": 913, "text": "%s"}' % (b"course " * 300),  # no finite vectors
}
NewJob = Callable[..., BulkJob]


@pytest.fixture(scope="module", autouse=True)
def long(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("long"):
        pytest.skip("make test-bulk-kill")


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    """A folder for Ray's files. The paths of its sockets must be short."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents and poisoned rows."""
    words = ["море", "суша", "function", "course", "ветер"]
    rng = random.Random(0)
    rows = [
        json.dumps({"_id": number, "text": " ".join(rng.choices(words, k=rng.randrange(1, 20)))})
        for number in range(ROWS)
    ]
    lines = [POISON.get(number, row.encode()) for number, row in enumerate(rows)]
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path


@pytest.fixture(scope="module")
def new_job(
    corpus_file: Path, runtimes: Any, ray_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NewJob]:
    """Return a job with one actor."""
    jobs = []
    model = str(runtimes("packed") / "bge-m3")
    fixed = ["--device", "cpu", "--threads", "1", "--partition-rows", str(PARTITION_ROWS)]

    def make(*more: str, source: Path = corpus_file) -> BulkJob:
        folder = tmp_path_factory.mktemp("job") / "job"
        jobs.append(BulkJob(folder, ray_folder, str(source), "--model", model, *fixed, *more))
        return jobs[-1]

    yield make
    for job in jobs:
        job.close()


@pytest.fixture(scope="module")
def undisturbed(new_job: NewJob) -> BulkJob:
    job = new_job()
    job.finish()
    assert sorted(job.computed) == list(range(PARTITIONS))
    return job


def check(job: BulkJob, undisturbed: BulkJob) -> None:
    """Check the output of a job, and what was computed twice."""
    assert job.table().equals(undisturbed.table())
    assert job.dead_letters() == undisturbed.dead_letters()
    assert not list(job.output.rglob("*.tmp"))
    for kill in job.kills:
        later = {note.partition for note in job.notes[kill.notes :] if note.step == "embed"}
        assert not later & kill.finished
    in_flight = [len(kill.in_flight) for kill in job.kills]
    assert len(job.computed) <= PARTITIONS + sum(in_flight)
    print(
        f"{job.runs} runs, {len(job.kills)} kills with {in_flight} partitions in flight, "
        f"{len(job.computed)} partitions computed of {PARTITIONS}"
    )


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_killed_job_ends_like_an_undisturbed_one(
    victim: Victim, new_job: NewJob, undisturbed: BulkJob
) -> None:
    job = new_job()
    job.start()
    job.wait_for_entries(PARTITIONS // 3)
    job.kill(victim)
    job.finish()
    check(job, undisturbed)
    assert job.runs == (1 if victim in ("actor", "writer") else 2)


def test_a_job_killed_ten_times_at_random_ends_like_an_undisturbed_one(
    new_job: NewJob, undisturbed: BulkJob
) -> None:
    rng = random.Random(1)
    job = new_job("--actors", "2")
    for victim in rng.sample(VICTIMS * 2, 10):
        if not job.is_running:
            job.start()
        job.wait_for_entries(rng.randrange(3))
        job.kill(victim)
    job.finish()
    check(job, undisturbed)


@pytest.fixture
def cluster(
    new_job: NewJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[BulkJob, Node]]:
    """A job on a cluster of two nodes, and the second of them. Nodes work in another folder."""
    job = new_job("--actors", "2")
    for name, value in job.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    arguments = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield job, node
    cluster.shutdown()


def test_a_node_that_vanishes_costs_no_new_run(
    cluster: tuple[BulkJob, Node], undisturbed: BulkJob
) -> None:
    job, node = cluster
    job.start("--address", os.environ["RAY_ADDRESS"])
    job.wait_for_entries(PARTITIONS // 3)
    raylet = node.all_processes["raylet"][0].process
    job.kill_node(raylet.pid)
    raylet.wait()
    job.finish()
    check(job, undisturbed)
    assert len({note.process for note in job.notes if note.step == "embed"}) > 1
    assert job.runs == 1


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk for half of the output."""
    folder = Path(tempfile.mkdtemp())
    mounted = mount(folder, "size=1m")
    if mounted.returncode:
        folder.rmdir()
        pytest.skip(f"no disk can be mounted: {mounted.stderr}")
    yield folder
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


def mount(folder: Path, options: str) -> subprocess.CompletedProcess[str]:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_full_disk_ends_a_run_and_room_lets_the_next_one_finish(
    new_job: NewJob, undisturbed: BulkJob, small_disk: Path
) -> None:
    job = new_job()
    job.output.symlink_to(small_disk)
    assert job.run() != 0
    assert "No space left on device" in job.errors
    assert "Traceback" not in job.errors
    job.kill_processes(set())  # note what is there
    assert mount(small_disk, "remount,size=64m").returncode == 0
    job.finish()
    check(job, undisturbed)


def test_only_partitions_that_are_not_whole_are_computed_again(
    new_job: NewJob, undisturbed: BulkJob
) -> None:
    job = new_job()
    shutil.copytree(undisturbed.output, job.output)
    vectors, entries = job.output / "vectors", job.output / "partitions"
    os.truncate(vectors / "000003.parquet", 5000)
    (vectors / "000005.parquet").unlink()
    os.truncate(entries / "000007.json", 50)
    (entries / "000009.json").unlink()
    (vectors / "000011.parquet.0f.tmp").write_bytes(b"PAR1")
    job.finish()
    assert sorted(job.computed) == [3, 5, 7, 9]
    check(job, undisturbed)


def test_each_poisoned_row_is_a_dead_letter(undisturbed: BulkJob) -> None:
    letters = undisturbed.dead_letters()
    assert [letter["row"] for letter in letters] == list(POISON)
    for letter in letters:
        print(letter["row"], letter["id"], letter["reason"])
        assert "word" not in letter["reason"]
    assert undisturbed.table().num_rows == ROWS - len(POISON)


def test_a_job_is_not_resumed_with_other_options_source_or_model(
    new_job: NewJob, undisturbed: BulkJob, corpus_file: Path, checkpoints: Path, tmp_path: Path
) -> None:
    source = tmp_path / corpus_file.name
    source.write_bytes(corpus_file.read_bytes() + b"\n{}")
    model = tmp_path / "int8"
    convert(checkpoints / "bge-m3", model, dtype="int8")
    for change, problem in [
        (["--dtype", "float32"], "`dense_dtype` float16. Given: float32"),
        (["--model", str(model)], f"{undisturbed.report()['fingerprint']}. Given: "),
        ([], "source `files` corpus.jsonl of"),
    ]:
        job = new_job(source=corpus_file if change else source)
        shutil.copytree(undisturbed.output, job.output)
        (job.output / "partitions" / "000000.json").unlink()
        assert job.run(*change) != 0
        assert problem in job.errors
        assert "\n" not in job.errors
        assert job.computed == []
        print(job.errors)
