from __future__ import annotations

import os
from pathlib import Path

import pytest

from bge_worker.startup import read_ahead


def test_only_files_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advised: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *given: advised.append(given[3]))
    (tmp_path / "lost+found").mkdir()
    os.mkfifo(tmp_path / "fifo")  # opened, it would wait for a writer
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    read_ahead([tmp_path, tmp_path / "nowhere", None])
    assert advised == [os.POSIX_FADV_WILLNEED]
