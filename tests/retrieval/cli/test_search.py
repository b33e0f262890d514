"""`bge search`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bge_client import ConfigurationError
from commands import Run


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
    table, *explanations = result.stdout.split("\n\n")
    header, *hits = table.splitlines()
    assert len(hits) == 5
    assert ("rerank" in header) == ("--rerank" in options)
    assert ("fused" in header) == ("--mode" not in options)
    assert result.stderr.startswith("bge: embed ")
    assert len(explanations) == 5
    lines = run(*command, "--limit", 5, "--json", *options).stdout.splitlines()
    assert [
        json.loads(line)["payload"]["_id"] in hit for line, hit in zip(lines, hits, strict=True)
    ]


def test_explain_shows_the_tokens_that_match(run: Run, indexed: Path) -> None:
    options = ["--collection", "course", "--path", indexed, "--limit", 1, "--explain"]
    result = run("search", "TCP congestion control", *options)
    _, explanation = result.stdout.split("\n\n")
    title, dense, sparse, colbert = explanation.splitlines()
    (line,) = run("search", "TCP congestion control", *options, "--json").stdout.splitlines()
    values = json.loads(line)["explanation"]
    assert title.startswith("1. net-07")
    assert dense.split() == ["dense", f"{values['dense']:.4f}"]
    assert sparse.split()[1] == f"{values['sparse']:.4f}"
    assert values["shared"][0]["text"] in sparse
    end = values["aligned"][-1]
    assert colbert.endswith(f"</s> → {end['document_token']} {end['similarity']:.2f}")


def test_explain_without_a_tokenizer_shows_the_stages(
    run: Run, indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise ConfigurationError("the endpoint has no /tokenize")

    monkeypatch.setattr("bge_retrieval.ServerTokenizer.tokens", missing)
    options = ["--collection", "course", "--path", indexed, "--limit", 2, "--explain"]
    result = run("search", "TCP", *options)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 3
    assert "the endpoint has no /tokenize" in result.stderr
