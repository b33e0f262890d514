"""Reading ahead, the trace of a start, and starts that lack a package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bge_worker.settings import EngineName
from bge_worker.startup import StartTrace, read_ahead
from conftest import MODELS, ROOT


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


@pytest.mark.parametrize(
    ("entry", "package", "extra"),
    [
        ("server.py", "orjson", "http"),
        ("handler.py", "runpod", "runpod"),
        ("handler.py", "msgspec", "runpod"),
    ],
)
def test_a_missing_extra_is_one_sentence(
    entry: str, package: str, extra: str, runtimes: Callable[[EngineName], Path]
) -> None:
    program = (
        f"import runpy, sys\nsys.modules[{package!r}] = None\nsys.argv = ['x']\n"
        f"runpy.run_path({str(ROOT / 'worker' / entry)!r}, run_name='__main__')"
    )
    models = {"BGE_EMBED_MODEL": str(runtimes("packed") / MODELS[0]), "BGE_RERANK_MODEL": ""}
    child = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | models | {"BGE_DEVICE": "cpu", "RUNPOD_WEBHOOK_GET_JOB": "http://x"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 1
    assert child.stderr.splitlines()[-1] == (
        f"bge-serverless cannot start: {package} is not installed: "
        f"pip install 'bge-worker[{extra}]'"
    )
    assert "Traceback" not in child.stderr
