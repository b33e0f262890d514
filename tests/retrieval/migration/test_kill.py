"""`bge migrate` as a process that is killed at random while its source changes.

A small collection and two kills; with --long, 20,000 points and 20 kills (`make test-kill`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import models

from bge_retrieval import Store
from points import assert_equal, contents

DIMENSIONS = 64  # of the source
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


def put(store: Store, points: Iterator[tuple[int, dict[str, Any]]]) -> None:
    structs = []
    for id, payload in points:
        seed = zlib.crc32(repr(payload).encode())
        vector = np.random.default_rng(seed).normal(size=DIMENSIONS).tolist()
        structs.append(models.PointStruct(id=id, vector=vector, payload=payload))
    store.upsert("old", structs)


def change(path: Path, rng: random.Random, size: int) -> None:
    """Add, change and delete some points."""
    few = max(1, size // 200)
    with Store.open(path=path) as store:
        put(store, ((size + rng.randrange(size), make_payload(rng, -1)) for _ in range(few)))
        put(store, ((rng.randrange(size), make_payload(rng, -2)) for _ in range(few)))
        store.delete("old", [rng.randrange(size) for _ in range(few)])


@pytest.mark.filterwarnings("ignore:Local mode is not recommended")  # from 20,000 points on
def test_a_migration_killed_repeatedly_ends_like_an_uninterrupted_one(
    bge: Bge, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    size, total = (20_000, 20) if request.config.getoption("long") else (700, 2)
    rng = random.Random(11)
    with Store.open(path=tmp_path) as store:
        params = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
        store.create_collection("old", vectors_config=params)
        put(store, ((number, make_payload(rng, number)) for number in range(size)))
        store.point_alias("live", "old")
    kills, max_seconds = 0, 4.0 if size > 1000 else 1.8
    while kills < total:
        process = bge("migrate", "old", "new", "--path", str(tmp_path))
        try:
            _, err = process.communicate(timeout=rng.uniform(0.5, max_seconds))
            assert process.returncode == 0, err
            max_seconds *= 0.8  # it finished before it could be killed
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
        change(tmp_path, rng, size)
    for target, options in (("new", ["--alias", "live"]), ("fresh", [])):
        process = bge("migrate", "old", target, "--path", str(tmp_path), *options)
        out, err = process.communicate(timeout=230)
        assert process.returncode == 0, err
        print(json.loads(out.splitlines()[-1]))
    with Store.open(path=tmp_path) as store:
        assert store.aliases() == {"live": "new"}
        new, old = contents(store, "new"), contents(store, "old")
        assert {id: payload for id, (payload, _) in new.items()} == {
            id: payload for id, (payload, _) in old.items()
        }
        assert_equal(new, contents(store, "fresh"))
