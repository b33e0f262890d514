"""`bge index`, `search`, `migrate`, `evaluate`: typical commands and their errors."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bge_client import JinaClient
from bge_client.cli import bge
from bge_retrieval import Store
from bge_retrieval.evaluation import builder
from bge_retrieval.shadow import Shadow
from conftest import ROOT
from fakes.scripted import Exchange, Scripted, status

EXAMPLES = ROOT / "retrieval" / "examples"
COURSE = EXAMPLES / "course"
FIELDS = ["--text-field", "title", "--text-field", "text"]
Run = Callable[..., Result]


def report(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def small(served: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection `course` of one passage, for commands that fail before searching."""
    path = tmp_path_factory.mktemp("small")
    arguments = ["index", "--collection", "course", "--path", path, "--endpoint", served]
    result = CliRunner().invoke(bge, [*map(str, arguments)], input='{"text": "море"}')
    assert report(result)["written"] == 1
    return path


@pytest.fixture(scope="module")
def indexed(served: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The course material in a local-mode folder."""
    path = tmp_path_factory.mktemp("qdrant")
    arguments = ["index", COURSE / "corpus.jsonl", "--collection", "course", "--path", path]
    arguments += ["--endpoint", served, *FIELDS]
    result = CliRunner().invoke(bge, [*map(str, arguments)])
    assert report(result)["written"] == 184
    return path


def test_a_second_index_run_writes_nothing(run: Run, indexed: Path) -> None:
    again = run("index", COURSE / "corpus.jsonl", "--collection", "course", "--path", indexed)
    assert (report(again)["unchanged"], report(again)["written"]) == (184, 0)


@pytest.mark.parametrize(
    "options",
    [["--mode", "dense"], ["--mode", "sparse"], [], ["--rerank", "20"]],
    ids=["dense", "sparse", "hybrid", "reranked"],
)
def test_search_prints_hits_with_the_rank_in_each_stage(
    run: Run, indexed: Path, options: list[str]
) -> None:
    command = ("search", "TCP congestion control", "--collection", "course", "--path", indexed)
    result = run(*command, "--limit", 5, "--explain", *options)
    assert result.exit_code == 0, result.output
    header, *hits = result.stdout.splitlines()
    assert len(hits) == 5
    assert ("rerank" in header) == ("--rerank" in options)
    assert ("fused" in header) == ("--mode" not in options)
    assert result.stderr.startswith("bge: embed ")
    lines = run(*command, "--limit", 5, "--json", *options).stdout.splitlines()
    assert [
        json.loads(line)["payload"]["_id"] in hit for line, hit in zip(lines, hits, strict=True)
    ]


def test_evaluate_writes_text_json_and_html(run: Run, indexed: Path, tmp_path: Path) -> None:
    result = run(
        *("evaluate", COURSE, "--collection", "course", "--path", indexed, "--queries", 25),
        *("--system", "dense", "--system", "hybrid@course", "--baseline", "dense"),
        *("--json", tmp_path / "r.json", "--html", tmp_path / "r.html"),
    )
    assert result.exit_code == 0, result.output
    assert "hybrid@course" in result.stdout
    data = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert [system["name"] for system in data["systems"]] == ["dense", "hybrid@course"]
    assert len(data["queries"]) == 25
    assert 0.2 < data["systems"][1]["means"]["nDCG@10"] < 1
    assert (tmp_path / "r.html").read_text("utf-8").startswith("<!doctype html>")


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
    systems = ("--system", "jina@courses", "--system", "hybrid@courses_bge")
    compared = run(
        *("evaluate", COURSE, *systems, "--baseline", "jina@courses", "--queries", 24, *path)
    )
    assert compared.exit_code == 0, compared.output
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


def test_evaluate_summarizes_a_shadow_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BGE_EMBEDDINGS_ENDPOINT")
    log = tmp_path / "shadow.jsonl"
    with Shadow(log, fraction=1.0) as shadow:
        shadow.offer("море", ["a", "b"], lambda: ["b", "a"], live_seconds=0.01)
    summary = report(run("evaluate", "--shadow", log))
    assert (summary["count"], summary["errors"]) == (1, {})


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["search", "x", "--collection", "c"], 2, "pass --path FOLDER or --qdrant-url, or set"),
        (["search", "x", "--collection", "nope", "--path", "{}"], 2, "Existing: course"),
        (["search", "x", "--collection", "course", "--path", "{}", "--filter", "{{}}x"], 2,
         "`--filter` is not a valid Qdrant filter"),
        (["search", "x", "--collection", "c", "--path", "/nope"], 2, "no collections in /nope"),
        (["search", " ", "--collection", "course", "--path", "{}"], 1, "`texts[0]` must not be"),
        (["evaluate", "--path", "{}"], 2, "pass DATASET or --shadow"),
        (["evaluate", str(COURSE), "--path", "{}", "--system", "bm25@x"], 2,
         "`--system` must be one of dense, sparse"),
        (["evaluate", str(COURSE), "--path", "{}"], 2, "pass --collection, or --system dense@COLL"),
        (["evaluate", str(EXAMPLES), "--path", "{}", "--collection", "course"], 2,
         "queries.jsonl cannot be read: No such file"),
        (["evaluate", str(COURSE), "--path", "{}", "--system", "jina@course"], 2, "JINA_API_KEY"),
        (["migrate", "course", "--path", "{}"], 2, "pass SOURCE and TARGET"),
        (["migrate", "course", "x", "--dry-run", "--text-field", "body", "--path", "{}"], 2,
         "no point of `course` has a text at `body`. Their payloads have: text."),
        (["migrate", "course", "x", "--dry-run", "--price", "nan", "--path", "{}"], 2,
         "`dollars_per_second` must be 0 or more. Given: nan"),
        (["search", "x", "--collection", "course", "--path", "{}", "--filter", "[" * 100_000], 2,
         "`--filter` is not a valid Qdrant filter"),
        (["migrate", "course", "x", "--in-place", "--path", "{}"], 2, "target means nothing"),
        (["migrate", "course", "x", "--dense-name", "y", "--path", "{}"], 2,
         "--dense-name means nothing without --in-place"),
        (["migrate", "--drop-old", "--alias", "y", "--dry-run", "--path", "{}"], 2,
         "pass only one of --dry-run, --drop-old"),
        (["migrate", "course", "--in-place", "--dry-run", "--path", "{}"], 2,
         "pass only one of --dry-run, --in-place"),
        (["migrate", "--rollback", "--path", "{}"], 2, "pass --alias"),
        (["migrate", "--rollback", "--alias", "y", "--path", "{}"], 2, "there is no alias `y`"),
        (["migrate", "--rollback", "--drop-old", "--path", "{}"], 2, "only one of --rollback, --d"),
        (["index", "--collection", "new", "--path", "{}"], 1, "line 2 is not JSON"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_with_its_exit_code(
    run: Run, small: Path, arguments: list[str], code: int, message: str
) -> None:
    command = [argument.format(small) if "{" in argument else argument for argument in arguments]
    result = run(*command, stdin='{"_id": 1, "text": "море"}\n{\n')
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_missing_extra_says_what_to_install(served: str, indexed: Path, tmp_path: Path) -> None:
    """In a process without ir-measures."""
    (tmp_path / "ir_measures.py").write_text("raise ImportError(name='ir_measures')")
    command = [sys.executable, "-m", "bge_client", "evaluate", COURSE, "--collection", "course"]
    result = subprocess.run(
        [*command, "--endpoint", served, "--path", indexed],
        cwd=tmp_path,  # its ir_measures is imported first
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr == (
        "bge: ConfigurationError: this needs ir_measures: pip install 'bge-retrieval[eval]'\n"
    )
