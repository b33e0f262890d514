from __future__ import annotations

import os
from pathlib import Path

from bge_worker.startup import read_ahead


def test_what_is_no_file_is_not_read_ahead(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    os.mkfifo(tmp_path / "fifo")  # opened, it would wait for a writer
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    read_ahead([tmp_path, tmp_path / "nowhere", None])
