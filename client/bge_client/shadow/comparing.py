"""Shadow mode: a share of the live queries also goes to the other provider, in the background.

    live call ── answered ──► offer ──(sampled, a place is free)──► waiting ──► thread: the other
                                │                                              provider, then one
                                └── otherwise nothing, and nothing is waited for       line of JSON

The live query never waits for a comparison and never fails by one: whatever goes wrong here is
counted, and logged by that thread, by its type alone. The file holds no query, only a hash of it,
and no document; who can guess a query can tell whether it was asked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from ..errors import ConfigurationError
from .agreement import Ranking, agreement

log = logging.getLogger("bge_client")

Names = tuple[str, str]  # the provider that answered, and the other
Result = TypeVar("Result")

WARN_SECONDS = 60.0  # between two warnings
CLOSE_SECONDS = 5.0


class _Job(NamedTuple):
    line: dict[str, Any]  # what is known of it before it is done
    live: Ranking
    other: Callable[[], Ranking]
    pool: int | None


class Shadow:
    """Compares a share of live answers with another provider's, and writes a file of it.

    `fraction` of the queries, 0..1, is compared down to rank `depth`, by `workers` threads; while
    `max_waiting` comparisons wait, more are dropped. The threads begin with the first comparison;
    after a fork the child starts its own, and what waited is compared by the parent alone. Several
    processes may share one file at `path`; it is opened for each line, and may be moved away.

    Raises:
        ConfigurationError: an argument is wrong. What is wrong with the file is only logged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fraction: float = 0.05,
        depth: int = 10,
        max_waiting: int = 32,
        workers: int = 1,
        seed: int | None = None,
    ) -> None:
        if not 0 <= fraction <= 1:
            raise ConfigurationError(f"`fraction` must be in 0..1. Given: {fraction}")
        for name, value in (("depth", depth), ("max_waiting", max_waiting), ("workers", workers)):
            if value < 1:
                raise ConfigurationError(f"`{name}` must be at least 1. Given: {value}")
        self._path = Path(path).absolute()
        self._fraction, self._depth = fraction, depth
        self._max_waiting, self._workers = max_waiting, workers
        self._random = random.Random(seed)
        self._closing = self._over = False
        self._begin()
        _SHADOWS.add(self)

    def _begin(self) -> None:
        """With nothing waiting; again in the child of a fork, where no thread has survived and the
        lock may be one that nobody will ever release."""
        self._half = True  # the file may end with half a line: an earlier process was killed
        self._changed = threading.Condition()  # guards all below; held for no call and no file
        self._waiting: deque[_Job] = deque()
        self._threads: list[threading.Thread] = []
        self._at_work = 0
        self._counts: Counter[str] = Counter()
        self._dropped_written = 0
        self._untold: tuple[str, str] | None = None  # what went wrong last, and its type
        self._warned = -WARN_SECONDS

    def __enter__(self) -> Shadow:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def counts(self) -> Counter[str]:
        """Comparisons so far: `written`, `dropped`, `failed` (an error in place of an answer) and
        `unwritten` (by an error of the file)."""
        with self._changed:
            return self._counts.copy()

    def offer(
        self,
        query: str,
        live: Ranking | Callable[[], Ranking],
        other: Callable[[], Ranking],
        *,
        live_seconds: float,
        names: Names = ("bge", "jina"),
        pool: int | None = None,
    ) -> None:
        """Perhaps compare `live`, the answer just given in `live_seconds`, with that of `other`.

        `other` is called in another thread, after this returns. A function for `live` is called
        at once, and only if there is a comparison. `pool` is how many ids both had to order, where
        that is known. Raises nothing.
        """
        if self._random.random() >= self._fraction:
            return
        try:
            order = live() if callable(live) else live
            if isinstance(order, Iterator):
                raise TypeError("to look at it would empty what the caller has")
            line = self._begun(query, live_seconds, names)
            self._take(_Job(line, tuple(order), other, pool))
        except Exception as error:
            self._went_wrong("failed", error)
            with suppress(Exception):  # no thread is to be had
                self._start()

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Compare what waits, for at most `timeout` seconds; the rest is dropped, and said to be.

        A comparison that does not end in that time is left behind and writes nothing.
        """
        ends = time.monotonic() + timeout
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))
        with self._changed:
            self._over = True
            self._counts["dropped"] += len(self._waiting) + self._at_work
            self._waiting.clear()
        self._write_dropped()
        self._tell()

    def _begun(self, query: str, live_seconds: float, names: Names) -> dict[str, Any]:
        return {
            "kind": "comparison",
            "time": _utc(time.time()),
            "query_sha256": hashlib.sha256(query.encode("utf-8", "replace")).hexdigest()[:16],
            "live": names[0],
            "other": names[1],
            "depth": self._depth,
            "live_ms": round(live_seconds * 1000, 3),
        }

    def _take(self, job: _Job) -> None:
        self._start()
        with self._changed:
            if self._closing:
                return
            if len(self._waiting) >= self._max_waiting:
                self._counts["dropped"] += 1
                return
            self._waiting.append(job)
            self._changed.notify()

    def _start(self) -> None:
        """The threads that are not there yet; one of them looks at what there is to tell."""
        with self._changed:
            while len(self._threads) < self._workers and not self._closing:
                thread = threading.Thread(target=self._work, name="bge-shadow", daemon=True)
                thread.start()
                self._threads.append(thread)
            if self._untold:
                self._changed.notify()

    def _work(self) -> None:
        while self._is_needed():
            if (job := self._next()) is not None and not self._done(job):
                return  # close() has counted it as dropped
            self._tell()

    def _is_needed(self) -> bool:
        """Once there is something to do; False when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._untold or self._closing)
            return bool(self._waiting or self._untold)

    def _next(self) -> _Job | None:
        with self._changed:
            if not self._waiting:
                return None
            self._at_work += 1
            return self._waiting.popleft()

    def _done(self, job: _Job) -> bool:
        """Whether that was before the end."""
        line = self._compared(job)
        with self._changed:
            if self._over:
                return False
            self._at_work -= 1
        if self._write(line):
            self._count("written")
        self._write_dropped()
        return True

    def _compared(self, job: _Job) -> dict[str, Any]:
        """The line about it."""
        began = time.perf_counter()
        try:
            order = tuple(job.other())
            seconds = time.perf_counter() - began
            found = agreement(job.live, order, self._depth, job.pool)
        except BaseException as error:  # SystemExit too: it would end this thread and no more
            self._went_wrong("failed", error)
            return job.line | {"error": type(error).__name__}
        measures = {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in found._asdict().items()
        }
        return job.line | {"other_ms": round(seconds * 1000, 3)} | measures

    def _write(self, line: dict[str, Any]) -> bool:
        """Whether it was written."""
        try:
            _append(self._path, json.dumps(line).encode() + b"\n", self._half)
        except Exception as error:
            self._half = True
            self._went_wrong("unwritten", error)
            return False
        self._half = False
        return True

    def _write_dropped(self) -> None:
        """As many as were dropped since this was last written: a killed process closes nothing."""
        with self._changed:
            count = self._counts["dropped"] - self._dropped_written
            self._dropped_written += count
        line = {"kind": "dropped", "time": _utc(time.time()), "count": count}
        if count and not self._write(line):
            with self._changed:
                self._dropped_written -= count

    def _count(self, what: str) -> None:
        with self._changed:
            self._counts[what] += 1

    def _went_wrong(self, what: str, error: BaseException) -> None:
        """Count it. To tell it is left to `_tell`: a live query must not meet a log handler."""
        with self._changed:
            self._counts[what] += 1
            self._untold = what, type(error).__name__  # its message may hold anything

    def _tell(self) -> None:
        """Warn of what went wrong, unless there was a warning a short while ago."""
        with self._changed:
            untold, self._untold = self._untold, None
            now = time.monotonic()
            if untold is None or now - self._warned < WARN_SECONDS:
                return
            self._warned = now
            what, kind = untold
            count = self._counts[what]
        with suppress(BaseException):  # of a handler: it would end this thread
            log.warning("shadow: comparisons %s: %d by now, the last by %s", what, count, kind)


_SHADOWS: weakref.WeakSet[Shadow] = weakref.WeakSet()


def _after_fork() -> None:
    for shadow in list(_SHADOWS):
        shadow._begin()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)


def _append(path: Path, line: bytes, half: bool) -> None:
    """In one write at the end of the file, which several processes may share.

    With `half`, after a line break if the file ends without one; not for each line, since that of
    another process, just being written, looks like half a line too.

    Raises:
        OSError: it could not be written, or not whole.
    """
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if half and size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line
        if file.write(line) != len(line):
            raise OSError("the line was cut off")


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class ShadowedSearch(Generic[Result]):
    """A search whose results are, now and then, compared with those of another.

    For embeddings: vectors of two models cannot be compared, what is found with them can. `live`
    and `other` find ids, best first, or something that `ids` takes them from. Without `ids`, only
    a sequence is compared, and an iterator never is: it could be read only once.
    """

    def __init__(
        self,
        live: Callable[[str], Result],
        other: Callable[[str], Result],
        shadow: Shadow,
        *,
        names: Names = ("bge", "jina"),
        ids: Callable[[Any], Ranking] | None = None,
    ) -> None:
        self._live, self._other, self._shadow = live, other, shadow
        self._names, self._ids = names, ids

    def search(self, query: str) -> Result:
        """What `live` finds, untouched."""
        began = time.perf_counter()
        found = self._live(query)
        self._shadow.offer(
            query,
            lambda: self._live_ids(found),
            lambda: self._taken(self._other(query)),
            live_seconds=time.perf_counter() - began,
            names=self._names,
        )
        return found

    def _live_ids(self, found: Any) -> Ranking:
        """Raises TypeError: to look at it might empty what the caller has."""
        if isinstance(found, Iterator) or not (self._ids or isinstance(found, Sequence)):
            raise TypeError("neither a sequence, nor something that `ids` could be taken from")
        return self._taken(found)

    def _taken(self, found: Any) -> Ranking:
        return self._ids(found) if self._ids else list(found)
