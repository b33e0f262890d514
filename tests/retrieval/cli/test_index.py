"""`bge index`."""

from __future__ import annotations

from pathlib import Path

from commands import COURSE, Run, report


def test_a_second_index_run_writes_nothing(run: Run, indexed: Path) -> None:
    again = run("index", COURSE / "corpus.jsonl", "--collection", "course", "--path", indexed)
    assert (report(again)["unchanged"], report(again)["written"]) == (184, 0)
