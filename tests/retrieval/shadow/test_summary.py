"""The summary of a file of shadow mode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bge_client import errors
from bge_retrieval.shadow import summarize


@pytest.mark.parametrize(
    "line",
    [
        b"hello",
        b"[1]",
        b"\xff\xfe",
        b'{"kind": "order"}',
        b'{"kind": "comparison", "live": "bge"}',
        b'{"kind": "dropped", "count": "many"}',
        b'{"kind": "dropped", "count": 1e400}',
        b'{"kind": "comparison", "live": "a", "other": "b", "live_ms": 1e400, "error": "x"}',
        b"[" * 100_000,
    ],
)
def test_foreign_line_is_named(line: bytes, path: Path) -> None:
    path.write_bytes(b'{"kind": "dropped", "count": 1}\n' + line + b"\n")
    with pytest.raises(errors.ConfigurationError, match="line 2, was not written by a `Shadow`"):
        summarize(path)


def test_summary_of_a_file(path: Path) -> None:
    def line(overlap: float, tau: float | None, first: bool, ms: float) -> dict[str, Any]:
        head = {"kind": "comparison", "live": "bge", "other": "jina", "live_ms": ms}
        measures = {"overlap": overlap, "rbo": overlap, "tau": tau, "same_first": first}
        return head | measures | {"other_ms": 10 * ms}

    failed = {"kind": "comparison", "live": "jina", "other": "bge", "live_ms": 30.0}
    contents = [
        *(line(0.0, None, False, 1.0), line(0.5, -1.0, True, 2.0), line(1.0, 1.0, True, 3.0)),
        line(0.5, None, True, 2.0) | {"overlap": None},
        *(failed | {"error": kind} for kind in ("DeadlineError", "JobError", "DeadlineError")),
        *({"kind": "dropped", "count": count} for count in (2, 3)),
    ]
    path.write_text("".join(json.dumps(content) + "\n" for content in contents), "utf-8")
    summary = json.loads(json.dumps(summarize(path).as_dict()))
    bge_pair, jina_pair = summary.pop("pairs")
    assert summary == {
        "count": 4,
        "errors": {"DeadlineError": 2, "JobError": 1},
        "dropped": 5,
        "broken": 0,
        "since": None,
    }
    assert bge_pair == {
        "live": "bge",
        "other": "jina",
        "count": 4,
        "errors": {},
        "overlap": {"mean": 0.5, "p10": pytest.approx(0.1), "p50": 0.5},  # of three
        "rbo": {"mean": 0.5, "p10": pytest.approx(0.15), "p50": 0.5},
        "tau": {"mean": 0.0, "p10": pytest.approx(-0.8), "p50": 0.0},
        "same_first": 0.75,
        "live_ms": {"p50": 2.0, "p99": pytest.approx(2.97)},
        "other_ms": {"p50": 20.0, "p99": pytest.approx(29.7)},
    }
    assert (jina_pair["live"], jina_pair["other"], jina_pair["count"]) == ("jina", "bge", 0)
    assert jina_pair["errors"] == summary["errors"]
    assert jina_pair["live_ms"] == {"p50": 30.0, "p99": 30.0}
    assert jina_pair["other_ms"] is jina_pair["overlap"] is jina_pair["same_first"] is None
    path.write_bytes(b"")
    assert (summarize(path).count, summarize(path).pairs) == (0, [])
