"""Faster starts, a trace of where their time goes, missing packages. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path


def read_ahead(folders: Iterable[Path | None]) -> None:
    """Have the kernel read the files of runtime folders while Python imports.

    Returns at once; files in the page cache are not read again.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for folder in folders:
        paths = folder.glob("*") if folder is not None and folder.is_dir() else ()
        for path in filter(Path.is_file, paths):  # opening a FIFO would block
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def missing_extra(error: ModuleNotFoundError, extra: str) -> str:
    """Return the last line of a start for which an extra of this package is not installed."""
    install = f"pip install 'bge-worker[{extra}]'"
    return f"bge-serverless cannot start: {error.name} is not installed: {install}"


class StartTrace:
    """Prints the age of the process after each stage of its start (`BGE_TRACE_START`)."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled

    def mark(self, stage: str) -> None:
        if self._enabled:
            print(f"start {process_age():7.2f} s  {stage}", file=sys.stderr, flush=True)


def process_age() -> float:
    """Seconds since the process started, to a hundredth; without Linux's /proc its CPU time."""
    try:
        began = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    except OSError:
        return time.process_time()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")
