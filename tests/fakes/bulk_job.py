"""A job of `fakes.slow_bulk` whose processes are killed, and which is run again.

All processes of a run work in the job's folder, which tells them from those of another Ray.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from .slow_bulk import NOTES, Note, read_notes

Victim = Literal["actor", "writer", "node", "driver", "all"]
ENDS = {"embed": "embedded", "write": "written"}
COMMAND = (sys.executable, "-c", "from fakes.slow_bulk import main; main()", "bulk")
PAUSE = 0.02  # seconds between looks at the files of a job


@dataclass(frozen=True)
class Kill:
    """The partitions that had an entry, those that were under way, and the notes so far."""

    finished: set[int]
    in_flight: set[int]
    notes: int


class BulkJob:
    """A job in `folder`, which holds its output `out`. `ray` is a folder for Ray's files."""

    def __init__(self, folder: Path, ray: Path, *arguments: str) -> None:
        self.folder, self.output = folder, folder / "out"
        self.environment = {NOTES: str(folder / "notes.txt"), "RAY_TMPDIR": str(ray)}
        self.runs = 0
        self.kills: list[Kill] = []
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()

    # ------------------------------------------------------------------------------ runs

    def start(self, *more: str) -> None:
        self.runs += 1
        with open(self._log("out"), "wb") as out, open(self._log("err"), "wb") as err:
            self._process = subprocess.Popen(
                [*COMMAND, *self._arguments, "--to", "out", *more],
                cwd=self.folder,
                env={**os.environ, **self.environment},
                stdout=out,
                stderr=err,
            )

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self) -> int:
        """Wait until the run has ended, and Ray with it. Return its exit code."""
        assert self._process is not None
        code = self._process.wait()
        while processes_in(self.folder):
            time.sleep(PAUSE)
        return code

    def run(self, *more: str) -> int:
        self.start(*more)
        return self.wait()

    def finish(self) -> None:
        """Let a run end, or run the job again until its end."""
        code = self.wait() if self.is_running else self.run()
        assert code == 0, self.errors

    def close(self) -> None:
        """Kill what a failed test left."""
        for pid in processes_in(self.folder):
            os.kill(pid, signal.SIGKILL)

    def _log(self, name: str) -> Path:
        return self.folder / f"run-{self.runs}.{name}"

    @property
    def errors(self) -> str:
        """What the last run wrote to stderr, without Ray's line about its log level."""
        lines = self._log("err").read_text().splitlines()
        return "\n".join(line for line in lines if "logging.cc" not in line)

    def report(self) -> dict[str, Any]:
        return dict(json.loads(self._log("out").read_text().splitlines()[-1]))

    # ----------------------------------------------------------------------------- kills

    def kill(self, victim: Victim) -> None:
        """Kill processes in the middle of a step. Where the driver dies, wait for the rest."""
        stopped = self.stop_worker("embed" if victim == "actor" else "write")
        doomed = self._doomed(victim, stopped)
        self.kill_processes(doomed)
        if stopped not in doomed:
            os.kill(stopped, signal.SIGCONT)
        if victim in ("node", "driver", "all"):
            assert self.wait() != 0
            self.kills[-1] = self._state()  # the rest may have finished partitions

    def kill_node(self, raylet: int) -> None:
        """Kill a raylet and its workers, which must have embedded something."""
        while not {note.process for note in self.notes if note.step == "embed"} & children(raylet):
            assert self.is_running, self.errors
            time.sleep(PAUSE)
        self.kill_processes({raylet, *children(raylet)})

    def kill_processes(self, pids: set[int]) -> None:
        self.kills.append(self._state())
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def _doomed(self, victim: Victim, stopped: int) -> set[int]:
        if victim in ("actor", "writer"):
            return {stopped}
        assert self._process is not None
        if victim == "driver":
            return {self._process.pid}
        processes = processes_in(self.folder)
        if victim == "all":
            return set(processes)
        raylet = next(pid for pid, name in processes.items() if name == "raylet")
        return {raylet, *children(raylet)}

    def stop_worker(self, step: str) -> int:
        """Stop a process in the middle of a step, and return its id."""
        while self.is_running:
            for note in self._unfinished(step):
                if note.process not in processes_in(self.folder):
                    continue
                os.kill(note.process, signal.SIGSTOP)
                if note in self._unfinished(step):
                    return note.process
                os.kill(note.process, signal.SIGCONT)
            time.sleep(PAUSE)
        raise AssertionError(f"the run ended before the kill: {self.errors}")

    def _unfinished(self, step: str) -> list[Note]:
        notes = self.notes
        return [
            note
            for note in notes
            if note.step == step and note._replace(step=ENDS[step]) not in notes
        ]

    def wait_for_entries(self, count: int) -> None:
        """Wait for so many more entries."""
        target = len(self.entries) + count
        while self.is_running and len(self.entries) < target:
            time.sleep(PAUSE)

    # ---------------------------------------------------------------------------- output

    @property
    def notes(self) -> list[Note]:
        return read_notes(Path(self.environment[NOTES]))

    @property
    def computed(self) -> list[int]:
        """The partitions that were embedded, or begun, in order."""
        return [note.partition for note in self.notes if note.step == "embed"]

    @property
    def entries(self) -> set[int]:
        return {int(path.stem) for path in self.output.glob("partitions/*.json")}

    def _state(self) -> Kill:
        notes, finished = self.notes, self.entries
        begun = {note.partition for note in notes if note.step == "embed"}
        return Kill(finished, begun - finished, len(notes))

    def table(self) -> pa.Table:
        paths = sorted(self.output.glob("vectors/*.parquet"))
        return pa.concat_tables([pq.read_table(path) for path in paths])

    def dead_letters(self) -> list[dict[str, Any]]:
        paths = sorted(self.output.glob("dead-letters/*.jsonl"))
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def processes_in(folder: Path) -> dict[int, str]:
    """Return the names of the processes that work in a folder, by their ids."""
    names = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(path / "cwd") == str(folder):  # a zombie has none
                names[int(path.name)] = (path / "comm").read_text().strip()
        except OSError:
            continue
    return names


def children(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for path in tasks for child in path.read_text().split()}
