"""CPU time and memory of a process and its descendants, sampled from /proc."""

from __future__ import annotations

import os
import shutil
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SAMPLE_SECONDS = 0.5
TICKS = os.sysconf("SC_CLK_TCK")
SHARED_MEMORY = "/dev/shm"  # Ray's object store
RAY_WORKER = "ray::"  # begins the title of Ray's workers


@dataclass
class Process:
    """`cpu`: seconds, at the last sample. `anonymous_mb` at each: memory shared with no other."""

    title: str
    cpu: float = 0.0
    anonymous_mb: dict[int, float] = field(default_factory=dict)


class ProcessTree:
    """Samples a process and its descendants until the block ends.

    `seconds` has the time of each sample, `shared_mb` what /dev/shm held more than before.
    """

    def __init__(self, root: int) -> None:
        self.root = root
        self.processes: dict[int, Process] = {}
        self.seconds: list[float] = []
        self.shared_mb: list[float] = []
        self._before = shutil.disk_usage(SHARED_MEMORY).used
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> ProcessTree:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        number = len(self.seconds)
        for pid in descendants(self.root):
            try:
                title, cpu, memory = read_process(pid)
            except OSError:  # it has ended
                continue
            process = self.processes.setdefault(pid, Process(title))
            process.title, process.cpu = title or process.title, cpu
            process.anonymous_mb[number] = memory
        self.seconds.append(time.monotonic())
        self.shared_mb.append((shutil.disk_usage(SHARED_MEMORY).used - self._before) / 1e6)

    def by_role(self, actors: Collection[int]) -> dict[str, list[Process]]:
        """Return the processes of the driver, the actors, Ray's other workers and its services."""
        roles: dict[str, list[Process]] = defaultdict(list)
        for pid, process in self.processes.items():
            if pid == self.root:
                roles["driver"].append(process)
            elif pid in actors:
                roles["actors"].append(process)
            elif process.title.startswith(RAY_WORKER):
                roles["tasks"].append(process)
            else:
                roles["services"].append(process)
        return dict(roles)

    def memory(self, processes: Sequence[Process]) -> list[float]:
        """Return the MB of the processes together at each sample."""
        samples = range(len(self.seconds))
        return [sum(p.anonymous_mb.get(number, 0.0) for p in processes) for number in samples]

    def slope(self, memory: Sequence[float], first: float, last: float) -> float:
        """Return the MB that the memory grows in a minute between two times."""
        span = slice(bisect_left(self.seconds, first), bisect_left(self.seconds, last))
        return 60 * float(np.polyfit(self.seconds[span], memory[span], 1)[0])


def descendants(root: int) -> Iterator[int]:
    """Yield the process and its descendants that are alive."""
    children: dict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                parent = int(stat_fields(int(path.name))[1])
            except OSError:
                continue
            children[parent].append(int(path.name))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children[pid]


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name: state, parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def read_process(pid: int) -> tuple[str, float, float]:
    """Return the title, the seconds of CPU time and the MB of anonymous memory.

    Raises:
        OSError: the process has ended.
    """
    title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    fields = stat_fields(pid)
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    memory = next((line.split()[1] for line in status if line.startswith("RssAnon:")), "0")
    return title, (int(fields[11]) + int(fields[12])) / TICKS, int(memory) / 1e3
