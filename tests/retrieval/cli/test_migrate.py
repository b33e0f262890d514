"""`bge migrate`, from a collection of another model to the end of it."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import models

from bge_client import JinaClient
from bge_retrieval import Store
from bge_retrieval.evaluation import providers
from commands import COURSE, EXAMPLES, FIELDS, Run, report
from fakes.qdrant_server import QdrantServer
from fakes.scripted import Exchange, Scripted, status


@pytest.fixture
def jina(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    """Jina's API, with the vectors of `examples/old_collection.py`."""
    monkeypatch.syspath_prepend(EXAMPLES)
    from old_collection import hashed  # type: ignore[import-not-found]

    def answer(exchange: Exchange) -> None:
        texts = exchange.body["input"]
        data = [{"index": n, "embedding": hashed(text)} for n, text in enumerate(texts)]
        status(200, {"data": data, "usage": {"total_tokens": 7 * len(texts)}})(exchange)

    with Scripted() as api:
        api.on("POST /v1/embeddings", answer)
        monkeypatch.setattr(providers, "JinaClient", functools.partial(JinaClient, base=api.url))
        monkeypatch.setenv("JINA_API_KEY", "secret")
        yield api


def test_migration_from_jina_vectors(run: Run, tmp_path: Path, jina: Scripted) -> None:
    """Estimate, copy, compare, cut over, roll back and drop the old collection."""
    path = ("--path", tmp_path)
    script = [sys.executable, str(EXAMPLES / "old_collection.py"), str(tmp_path)]
    subprocess.run(script, check=True, capture_output=True)
    refused = run("search", "TCP", "--collection", "courses", *path)
    assert (refused.exit_code, "has no metadata" in refused.stderr) == (5, True)
    estimate = report(run("migrate", "courses", "courses_bge", *FIELDS, "--dry-run", *path))
    assert (estimate["points"], estimate["without_text"]) == (184, 0)
    assert estimate["tokens"] > 10_000
    copied = report(run("migrate", "courses_v1", "courses_bge", *FIELDS, *path))
    assert (copied["points"], copied["alias"]) == (184, None)
    systems = ("--systems", "jina@courses,hybrid@courses_bge")
    compared = run(
        *("evaluate", COURSE, *systems, "--baseline", "jina@courses", "--queries", 24, *path)
    )
    assert compared.exit_code in (0, 7), compared.output  # the verdict
    assert re.search(
        r"^(PASS|FAIL): hybrid@courses_bge .* of jina@courses's", compared.stdout, re.M
    )
    cutover = report(run("migrate", "courses", "courses_bge", *FIELDS, *path))
    assert (cutover["alias"], cutover["written"]) == ("courses", 0)
    assert "net-07" in run("search", "TCP congestion", "--collection", "courses", *path).stdout
    assert report(run("migrate", "--rollback", "--alias", "courses", *path)) == {
        "alias": "courses",
        "points_to": "courses_v1",
    }
    run("migrate", "courses", "courses_bge", *FIELDS, *path)
    assert report(run("migrate", "--drop-old", "--alias", "courses", *path))["dropped"] == (
        "courses_v1"
    )
    with Store.open(path=tmp_path) as store:
        assert store.aliases() == {"courses": "courses_bge"}
        assert not store.exists("courses_v1")


def test_in_place_with_a_snapshot_and_back(run: Run) -> None:
    """The snapshot comes before every write, and its restoration is printed."""
    with QdrantServer() as server, Store.open(url=server.url) as store:
        params = models.VectorParams(size=4, distance=models.Distance.COSINE)
        store.create_collection("old", vectors_config={"jina": params})
        point = models.PointStruct(id=1, vector={"jina": [1, 0, 0, 0]}, payload={"text": "море"})
        store.upsert("old", [point])
        store.point_alias("courses", "old")
        written = len(server.calls)
        url = ("--qdrant-url", server.url)
        added = run("migrate", "courses", "--in-place", "--add-dense", "bge-m3", "--snapshot", *url)
        assert (report(added)["dense"], report(added)["written"]) == ("bge-m3", 1)
        assert '"$QDRANT_URL/collections/old/snapshots/old-0.snapshot"' in added.stderr
        writes = [call for call in server.calls[written:] if call.method in ("PUT", "PATCH")]
        snapshot = server.routes().index("POST /collections/old/snapshots")
        assert snapshot < server.calls.index(writes[0])
        copied = run("migrate", "old", "new", "--snapshot", *url)
        assert "old-1.snapshot" in copied.stderr
        assert report(run("migrate", "courses", "--rollback", *url))["dense"] is None
        run("migrate", "courses", "--drop-vector", "bge-m3", "--drop-vector", "sparse", *url)
        assert {*store.info("old").config.params.vectors} == {"jina"}
        assert server.conformance_errors() == []
