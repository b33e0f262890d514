"""The written report and the table of all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bge_builder.errors import BuilderError
from bge_builder.field_report.record import Lease, Record
from bge_builder.field_report.report import NO_REPORT, status_table, write_report
from bge_client.redaction import read_secret
from conftest import ROOT

RESULTS = {
    "queue: golden values": {"agree": True},
    "lb: golden values": {"agree": True},
    "queue: clients": {"agree": False},
    "queue: lone query": {"p50_ms": 41.5},
    "lb: lone query": {"p50_ms": 20.1},
    "lb: throughput": {"tokens_per_second": 61234},
    "queue: cold starts": {"FLASHBOOT": [{"seconds": 3.21}, {"seconds": 9.5}], "OFF": []},
}


def test_the_readme_has_the_table_of_the_reports_in_the_repository() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    section = readme.partition("<!-- field-reports -->\n")[2].partition("\n<!-- end -->")[0]
    assert " ".join(section.split()) == " ".join(status_table(ROOT / "field-reports").split())


RECORD = Record("run", "image:1", "api", 0.0, RESULTS, [Lease("queue", 0.0, 60.0, "NVIDIA L4")])


def test_a_report_is_named_by_date_and_card_and_replaces_none(tmp_path: Path) -> None:
    names = [write_report(RECORD, tmp_path, 0.5) for _ in range(2)]
    assert names == ["1970-01-01-nvidia-l4.json", "1970-01-01-nvidia-l4-2.json"]


def test_a_report_holds_no_key(tmp_path: Path) -> None:
    key = read_secret("rpa_CANARY0123456789", "key")
    record = Record("run", "image:1", "api", 0.0, {"queue: clients": {"failed": f"401 {key}"}})
    assert "CANARY" not in (tmp_path / write_report(record, tmp_path, 0.0)).read_text("utf-8")


def test_the_table_has_a_row_for_each_report(tmp_path: Path) -> None:
    assert status_table(tmp_path) == NO_REPORT
    write_report(RECORD, tmp_path, 0.5)
    row = status_table(tmp_path).splitlines()[-1]
    assert row == (
        "| 1970-01-01 | NVIDIA L4 | queue, lb | agree | not run | **disagree** | 41.5 ms, 20.1 ms "
        "| 61,234 | 3.2 to 9.5 s |"
    )


def test_a_file_that_is_no_report_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"date": 1}), "utf-8")
    with pytest.raises(BuilderError, match=r"x.json` is not a field report"):
        status_table(tmp_path)
