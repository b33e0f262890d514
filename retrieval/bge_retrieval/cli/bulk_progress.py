"""Progress of a job: a bar on a terminal, a line now and then elsewhere, and the final report."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

import click

from bge_client.cli import progress_bar

from ..bulk.job import Job
from ..bulk.manifest import Entry

LINE_SECONDS = 30.0  # between lines, where stderr is no terminal


@dataclass
class ActorTotal:
    """What one actor has computed in this run. `seconds` are of embedding."""

    device: str
    tokens: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass
class Counts:
    """Counts of rows and tokens."""

    rows: int = 0
    written: int = 0
    failed: int = 0
    truncated: int = 0
    tokens: int = 0

    def add(self, entry: Entry) -> None:
        for name in asdict(self):
            setattr(self, name, getattr(self, name) + getattr(entry, name))


@dataclass
class Progress:
    """Counts the entries of a run. `dollars_per_hour` is the price of an actor."""

    job: Job
    actors: int
    dollars_per_hour: float
    run: Counts = field(default_factory=Counts)
    total: Counts = field(default_factory=Counts)
    by_actor: dict[str, ActorTotal] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for entry in self.job.finished.values():
            self.total.add(entry)
        self._start = self._line = time.monotonic()
        self._bar = progress_bar("rows", self.job.manifest.rows, self.total.rows)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, entry: Entry) -> None:
        self.run.add(entry)
        self.total.add(entry)
        actor = self.by_actor.setdefault(entry.actor, ActorTotal(entry.device))
        actor.tokens += entry.tokens
        actor.seconds += entry.seconds
        self._bar.set_postfix_str(self._rates(), refresh=False)
        self._bar.update(entry.rows)
        if self._bar.disable and time.monotonic() - self._line >= LINE_SECONDS:
            self._line = time.monotonic()
            click.echo(self._sentence(), err=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def dollars(self) -> float:
        return self.dollars_per_hour * self.actors * self.seconds / 3600

    @property
    def dead_letters(self) -> str | None:
        """Return the folder of the rows that failed, if there are any."""
        return f"{self.job.folder.path}/dead-letters" if self.total.failed else None

    def _rates(self) -> str:
        rates = sorted(actor.rate for actor in self.by_actor.values())
        span = f"{rates[0]:,.0f}" + (f" to {rates[-1]:,.0f}" if len(rates) > 1 else "")
        texts = [f"{self.run.tokens:,} tokens", f"{span} tokens/s an actor"]
        if self.dollars_per_hour:
            texts.append(f"${self.dollars:.2f}")
        if self.total.failed:
            texts.append(f"{self.total.failed:,} failed")
        return ", ".join(texts)

    def _sentence(self) -> str:
        rate = self.run.rows / self.seconds
        left = (self.job.manifest.rows - self.total.rows) / rate if rate else 0.0
        share = f"{self.total.rows:,} of {self.job.manifest.rows:,} rows"
        return f"bge: {share}, {rate:,.0f} rows/s, {left / 60:,.0f} min left, {self._rates()}"

    def report(self) -> dict[str, Any]:
        """Return the report of the run as JSON."""
        by_device: dict[str, list[float]] = defaultdict(list)
        for actor in self.by_actor.values():
            by_device[actor.device].append(round(actor.rate, 1))
        return {
            "output": self.job.folder.path,
            "fingerprint": self.job.manifest.model.fingerprint,
            "partitions": len(self.job.manifest.partitions),
            **asdict(self.total),
            "this_run": asdict(self.run),
            "tokens_per_second": dict(by_device),
            "dead_letters": self.dead_letters,
            "seconds": round(self.seconds, 1),
            "dollars": round(self.dollars, 4),
        }
