"""`bge migrate`, from a collection of another model to the end of it."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bge_client import JinaClient
from bge_retrieval import Store
from bge_retrieval.evaluation import builder
from commands import COURSE, EXAMPLES, FIELDS, Run, report
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
        monkeypatch.setattr(builder, "JinaClient", functools.partial(JinaClient, base=api.url))
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
