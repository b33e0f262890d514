"""Progress on stderr: a line for each step when it begins, with its seconds when it ends.

python builder/bge_builder/progress.py TITLE COMMAND …

runs a command as a step, and shows its output only if it fails. `make setup` imports this module
before anything is installed, so it needs the standard library alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

WIDTH = 56  # of a title; the seconds follow


class Step:
    """A context manager. On a terminal the seconds are counted while the step runs."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._note = ""
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._counting = threading.Thread(target=self._count, daemon=True)

    def __enter__(self) -> Step:
        print(f"{self._title + ' …':{WIDTH}}", end="", file=sys.stderr, flush=True)
        if sys.stderr.isatty():
            self._counting.start()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        if self._counting.ident is not None:
            self._counting.join()
            self._redraw("")
        seconds = f"{time.monotonic() - self._began:6.1f} s"
        print(seconds if error_type is None else "failed", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Show `text` beside the seconds until the step ends. Only on a terminal."""
        self._note = f"  {text}"

    def _count(self) -> None:
        while not self._ended.wait(0.5):
            self._redraw(f"{time.monotonic() - self._began:6.0f} s{self._note}")

    def _redraw(self, text: str) -> None:
        # A line that wraps could not be redrawn. `\033[K` clears what a longer note has left.
        line = f"{self._title + ' …':{WIDTH}}{text}"[: shutil.get_terminal_size().columns - 1]
        print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)


def run_step(title: str, command: Sequence[str]) -> int:
    """Run a command as a step. Return its exit code."""
    try:
        with Step(title):
            subprocess.run(
                command,
                check=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
    except subprocess.CalledProcessError as error:
        print(error.output, end="", file=sys.stderr)
        return error.returncode
    return 0


if __name__ == "__main__":
    try:
        sys.exit(run_step(sys.argv[1], sys.argv[2:]))
    except KeyboardInterrupt:
        sys.exit(130)
