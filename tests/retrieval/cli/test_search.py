"""`bge search`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
    header, *hits = result.stdout.splitlines()
    assert len(hits) == 5
    assert ("rerank" in header) == ("--rerank" in options)
    assert ("fused" in header) == ("--mode" not in options)
    assert result.stderr.startswith("bge: embed ")
    lines = run(*command, "--limit", 5, "--json", *options).stdout.splitlines()
    assert [
        json.loads(line)["payload"]["_id"] in hit for line, hit in zip(lines, hits, strict=True)
    ]
