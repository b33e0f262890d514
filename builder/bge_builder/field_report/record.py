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
    """The field report cannot go on, or a step of it failed."""


@dataclass
class Lease:
    """An endpoint's time on RunPod. Seconds since the epoch; without `end` it may still exist."""

    endpoint_type: str
    start: float
    end: float | None = None
    gpu: str | None = None

    def seconds(self, now: float) -> float:
        return (now if self.end is None else self.end) - self.start


@dataclass
class Record:
    """`results` has the outcome of each finished step by name; `leases` its endpoints, by time.

    `subject` is the image, or "local"; `api` the address of RunPod's API; `report` the file that
    was written of this run.
    """

    run_id: str
    subject: str
    api: str
    started: float
    results: dict[str, Any] = field(default_factory=dict)
    leases: list[Lease] = field(default_factory=list)
    report: str | None = None
    format: int = FORMAT

    def save(self, path: Path) -> None:
        """Replace the file at once: a killed run leaves the last complete one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1), "utf-8")
        os.replace(temporary, path)

    def end_leases(self) -> None:
        for lease in self.leases:
            lease.end = lease.end or time.time()

    @property
    def card(self) -> str:
        """Every card that the steps ran on."""
        cards = dict.fromkeys(str(lease.gpu) for lease in self.leases if lease.gpu)
        return " and ".join(cards) or str(self.results.get("local: card", {}).get("name"))

    @property
    def failed(self) -> list[str]:
        return [name for name, result in self.results.items() if "failed" in result]

    def is_done(self, step: str) -> bool:
        """Whether a step has a result. One that failed runs again."""
        return step in self.results and step not in self.failed


def open_record(path: Path, subject: str, api: str) -> Record:
    """Return the unfinished run in the file, or a new one.

    Raises ReportError: the file is of another image or API, or is not a record.
    """
    record = read_record(path)
    if record is None:
        now = time.time()
        return Record(time.strftime("%Y%m%d-%H%M%S", time.gmtime(now)), subject, api, now)
    if (record.subject, record.api) != (subject, api):
        raise ReportError(
            f"`{path}` is an unfinished field report of {record.subject} on {record.api}. Given: "
            f"{subject} on {api}. Finish it, or remove the file"
        )
    return record


def read_record(path: Path) -> Record | None:
    """Raises ReportError: the file is not a record of this version."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        leases = [Lease(**lease) for lease in content.pop("leases")]
        record = Record(**content, leases=leases)
    except (ValueError, TypeError, KeyError, AttributeError):
        record = None
    if record is None or record.format != FORMAT:
        raise ReportError(f"`{path}` is not an unfinished field report: remove it")
    return record
