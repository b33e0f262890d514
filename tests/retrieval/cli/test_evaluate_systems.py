"""The tables of `bge evaluate`."""

from __future__ import annotations

import unicodedata

import pytest

from bge_retrieval.cli.evaluate_systems import print_report
from bge_retrieval.cli.output import print_table
from bge_retrieval.evaluation import compare
from runs import make_run, run_with_hits


def test_table_columns_are_aligned_for_any_script(capsys: pytest.CaptureFixture[str]) -> None:
    base, qrels = run_with_hits(20, name="jina")
    names = list(qrels)
    worse = make_run("bge [bold] плотныи\u0306", {query_id: [] for query_id in names})
    better, _ = run_with_hits(20)
    print_report(compare([base, better, worse], qrels, "jina"))
    blocks = capsys.readouterr().out.rstrip().split("\n\n")
    head, systems, notes, agreement, differences, *verdicts = blocks
    assert head.startswith("20 queries, ")
    assert "costs its idle timeout" in notes
    assert "p99 is close to the slowest query" in notes
    for table, rows in ((systems, 4), (agreement, 3), (differences, 7)):
        lines = table.splitlines()
        assert len(lines) == rows
        widths = {sum(not unicodedata.combining(letter) for letter in line) for line in lines}
        assert len(widths) == 1  # the last column is right-aligned
    assert "bge [bold] плотныи" in systems
    assert [line.partition(":")[0] for line in verdicts] == ["PASS", "FAIL"]


def test_one_system_alone_has_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    alone, qrels = run_with_hits(20)
    print_report(compare([alone], qrels, "bge"))
    assert "PASS" not in capsys.readouterr().out


def test_a_table_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["text"], [["море\x1b[31m\x9b2J\x07\x00"]], left=("text",))
    assert capsys.readouterr().out.splitlines()[1].strip() == "море[31m2J"
