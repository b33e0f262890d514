"""Reading ahead, and the trace of a start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bge_worker.startup import StartTrace, read_ahead


def test_only_files_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advised: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: advised.append(arguments[3]))
    (tmp_path / "lost+found").mkdir()
    os.mkfifo(tmp_path / "fifo")  # opened, it would wait for a writer
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    read_ahead([tmp_path, tmp_path / "nowhere", None])
    assert advised == [os.POSIX_FADV_WILLNEED]


def test_a_trace_prints_stages_only_if_enabled(capsys: pytest.CaptureFixture[str]) -> None:
    StartTrace(enabled=False).mark("models loaded")
    assert capsys.readouterr().err == ""
    StartTrace(enabled=True).mark("models loaded")
    assert capsys.readouterr().err.endswith(" s  models loaded\n")
