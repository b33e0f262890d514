"""What helps a start before anything heavy is imported, and tells where its time goes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

TRACE = os.environ.get("BGE_TRACE_START") == "1"


def read_ahead(folders: Iterable[Path | None]) -> None:
    """Have the kernel read the files of runtime folders while Python imports.

    It returns at once; a file that is in the page cache already is not read again.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for folder in folders:
        paths = folder.glob("*") if folder is not None and folder.is_dir() else ()
        for path in filter(Path.is_file, paths):  # a fifo would never open
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def mark(stage: str) -> None:
    """With `BGE_TRACE_START=1`, say on stderr how old the process is now that `stage` is over."""
    if TRACE:
        print(f"start {age():7.2f} s  {stage}", file=sys.stderr, flush=True)


def age() -> float:
    """Seconds since this process was started; to a hundredth, and on Linux alone."""
    try:
        began = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    except OSError:
        return time.process_time()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")
