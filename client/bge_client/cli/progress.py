"""Progress on stderr, if it is a terminal: the share that is done, the rate and the time left."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from tqdm import tqdm


def progress_bar(unit: str, total: int | None = None, done: int = 0) -> tqdm[Any]:
    """Return a bar, to be closed by `with`. `unit` is a plural; `done` is of an earlier run.

    Without a `total`, it shows the count and the rate.
    """
    return tqdm(total=total, initial=done, unit=f" {unit}", dynamic_ncols=True, disable=None)


def count_lines(source: IO[str]) -> int | None:
    """Return the number of lines of a file; None if it is a pipe or has no name."""
    path = Path(str(getattr(source, "name", "")))
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return sum(1 for _ in file)  # the last one may have no line end
