"""`bge migrate` as a process that is killed at random while its source changes.

A small collection and a kill; with --long, 20,000 points and 20 kills (`make test-kill`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import models

from bge_client import Client
from bge_retrieval import Store
from bge_retrieval.similarity import dense_vector
from points import assert_equal, contents, payloads

DIMENSIONS = 64  # of the source
LONG_SIZE = 20_000  # points
Bge = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def bge(served: str) -> Bge:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("BGE_")}
    env = variables | {"BGE_EMBEDDINGS_ENDPOINT": served}

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bge_client", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)

    return start


def make_payload(rng: random.Random, number: int) -> dict[str, Any]:
    words = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(3, 12)))
    return {"text": f"{words} {number}", "n": number}


WORDS = ("градиент", "function", "минимум", "course", "данные", "vector", "поиск", "lesson")


class Source:
    """The collection `old` in a folder. It holds BGE's dense vectors if there is a `worker`."""

    def __init__(self, path: Path, size: int, worker: Client | None) -> None:
        self._path, self._size, self._worker = path, size, worker
        self._rng = random.Random(11)
        with Store.open(path=path) as store:
            self.create(store, "old")
            payloads = [make_payload(self._rng, number) for number in range(size)]
            self._put(store, dict(enumerate(payloads)))
            store.point_alias("live", "old")

    def create(self, store: Store, name: str) -> None:
        size = DIMENSIONS if self._worker is None else 512
        params = models.VectorParams(size=size, distance=models.Distance.COSINE)
        store.create_collection(name, vectors_config=params)

    def change(self) -> None:
        """Add, change and delete some points."""
        few = max(1, self._size // 200)
        ids = [self._rng.randrange(2 * self._size) for _ in range(2 * few)]
        with Store.open(path=self._path) as store:
            self._put(store, {id: make_payload(self._rng, -1) for id in ids})
            store.delete("old", [self._rng.randrange(self._size) for _ in range(few)])

    def _put(self, store: Store, payloads: dict[int, dict[str, Any]]) -> None:
        vectors = self._vectors([payload["text"] for payload in payloads.values()])
        points = [
            models.PointStruct(id=id, vector={"": vector.tolist()}, payload=payload)
            for (id, payload), vector in zip(payloads.items(), vectors, strict=True)
        ]
        store.upsert("old", points)

    def _vectors(self, texts: list[str]) -> Any:
        if self._worker is not None:
            return self._worker.embed(texts).dense
        seeds = (zlib.crc32(text.encode()) for text in texts)
        return [np.random.default_rng(seed).normal(size=DIMENSIONS) for seed in seeds]

    def copy(self, name: str) -> None:
        """Copy the payloads and the vectors that `old` had at the start."""
        with Store.open(path=self._path) as store:
            self.create(store, name)
            for records in store.scroll("old", with_payload=True, with_vectors=True):
                points = [
                    models.PointStruct(
                        id=record.id,
                        vector={"": dense_vector(record.vector, "")},
                        payload=record.payload,
                    )
                    for record in records
                ]
                store.upsert(name, points)


def migrate_with_kills(
    bge: Bge, path: Path, source: Source, arguments: list[str], kills: int, seconds: float
) -> None:
    """Run the command until it was killed `kills` times. The source changes after each run."""
    rng = random.Random(12)
    while kills:
        process = bge("migrate", *arguments, "--path", str(path))
        try:
            _, err = process.communicate(timeout=rng.uniform(0.5, seconds))
            assert process.returncode == 0, err
            seconds *= 0.8  # it finished before it could be killed
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills -= 1
        source.change()


def migrate(bge: Bge, path: Path, arguments: list[str]) -> None:
    process = bge("migrate", *arguments, "--path", str(path))
    out, err = process.communicate(timeout=230)
    assert process.returncode == 0, err
    print(json.loads(out.splitlines()[-1]))


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> tuple[int, int, float]:
    """The number of points, of kills, and the most seconds before one."""
    return (LONG_SIZE, 20, 4.0) if request.config.getoption("long") else (700, 1, 1.8)


@pytest.mark.filterwarnings("ignore:Local mode is not recommended")  # from 20,000 points on
def test_a_migration_killed_repeatedly_ends_like_an_uninterrupted_one(
    bge: Bge, tmp_path: Path, scale: tuple[int, int, float]
) -> None:
    size, kills, seconds = scale
    source = Source(tmp_path, size, None)
    migrate_with_kills(bge, tmp_path, source, ["old", "new"], kills, seconds)
    migrate(bge, tmp_path, ["old", "new", "--alias", "live"])
    migrate(bge, tmp_path, ["old", "fresh"])
    with Store.open(path=tmp_path) as store:
        assert store.aliases() == {"live": "new"}
        assert payloads(store, "new") == payloads(store, "old")
        assert_equal(contents(store, "new"), contents(store, "fresh"))


@pytest.mark.filterwarnings("ignore:Local mode is not recommended")
@pytest.mark.parametrize("options", [["--add-dense", "bge-m3"], []], ids=["dense", "sparse"])
def test_vectors_added_in_place_with_kills_are_those_of_an_uninterrupted_run(
    bge: Bge, tmp_path: Path, scale: tuple[int, int, float], worker: Client, options: list[str]
) -> None:
    size, kills, seconds = scale
    if size != LONG_SIZE:
        pytest.skip("only with --long: test_in_place.py interrupts every call")
    seconds *= 3  # vectors are added after the checks
    source = Source(tmp_path, size, None if options else worker)
    arguments = ["--in-place", *options]
    migrate_with_kills(bge, tmp_path, source, ["live", *arguments], kills, seconds)
    migrate(bge, tmp_path, ["live", *arguments])
    source.copy("fresh")
    migrate(bge, tmp_path, ["fresh", *arguments])
    with Store.open(path=tmp_path) as store:
        assert_equal(contents(store, "old"), contents(store, "fresh"))
        assert all("sparse" in vectors for _, vectors in contents(store, "old").values())
