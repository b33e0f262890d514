"""The run in progress: what its steps found, and the endpoints that it pays for."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BuilderError

FORMAT = 1


class ReportError(BuilderError):
    """The field report cannot go on."""


@dataclass
class Lease:
    """An endpoint's time on RunPod. Seconds since the epoch; without `end` it still exists."""

    endpoint_type: str
    start: float
    end: float | None = None

    def seconds(self, now: float) -> float:
        return (now if self.end is None else self.end) - self.start


@dataclass
class Record:
    """`results` has the outcome of each finished step by name; `leases` its endpoints, by time."""

    run_id: str
    subject: str  # the image, or "local"
    started: float
    results: dict[str, Any] = field(default_factory=dict)
    leases: list[Lease] = field(default_factory=list)
    card: str | None = None
    format: int = FORMAT

    def save(self, path: Path) -> None:
        """Replace the file at once: a killed run leaves the last complete one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1), "utf-8")
        os.replace(temporary, path)


def open_record(path: Path, subject: str) -> Record:
    """Return the unfinished run in the file, or a new one.

    Raises ReportError: the file is of another image, or is not a record.
    """
    if not path.exists():
        now = time.time()
        return Record(time.strftime("%Y%m%d-%H%M%S", time.gmtime(now)), subject, now)
    try:
        content = json.loads(path.read_text("utf-8"))
        leases = [Lease(**lease) for lease in content.pop("leases")]
        record = Record(**content, leases=leases)
    except (ValueError, TypeError, KeyError):
        raise ReportError(f"`{path}` is not an unfinished field report: remove it") from None
    if (record.subject, record.format) != (subject, FORMAT):
        raise ReportError(
            f"`{path}` is an unfinished field report of {record.subject}. Given: {subject}. "
            "Finish it, or remove the file"
        )
    return record
