"""Shadow mode: send a sample of the live queries to a second provider in the background.

    live call ── result ──► offer ──(sampled, queue not full)──► queue ──► thread: second provider,
                              │                                            then one line of JSON
                              └── otherwise returns at once

A live query never waits for a comparison and never fails because of one. Failures are counted, and
logged by the thread with their type alone. The file holds a hash of each query and no document.
Anyone who guesses a query can check its hash.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from bge_client import Client, ConfigurationError, JinaClient, RerankResult

from .. import fork
from ..agreement import Ranking, agreement

log = logging.getLogger("bge_retrieval")

Names = tuple[str, str]  # the live provider and the candidate

WARN_SECONDS = 60.0  # minimum between two warnings
CLOSE_SECONDS = 5.0


class _Comparison(NamedTuple):
    line: dict[str, Any]  # the fields known before the comparison
    live: Ranking
    candidate: Callable[[], Ranking]
    pool: int | None


class Shadow:
    """Compares a sample of live results with another provider's and writes them to a file.

    A `fraction` of the queries, 0..1, is compared down to rank `depth` by `workers` threads. While
    `max_waiting` comparisons are queued, new ones are dropped. The first comparison starts the
    threads. After a fork the child starts its own; the parent alone handles the queue. Several
    processes may share the file at `path`. It is opened for each line, so it may be rotated.

    A shadow with a `reranker` can be the `on_rerank` of a `Router`. Close it before the `reranker`.

    Raises:
        ConfigurationError: an argument is invalid. File errors are only logged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        reranker: Client | JinaClient | None = None,
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
        self._reranker = reranker
        self._fraction, self._depth = fraction, depth
        self._max_waiting, self._workers = max_waiting, workers
        self._random = random.Random(seed)
        self._closing = self._closed = False
        self.renew_after_fork()
        fork.register(self)

    def renew_after_fork(self) -> None:
        """Set the initial state, also in the child of a fork: no thread has survived there, and
        the inherited lock may stay locked."""
        self._repair = True  # the file may end with an incomplete line
        self._condition = threading.Condition()  # guards all below; not held during calls or writes
        self._queue: deque[_Comparison] = deque()
        self._threads: list[threading.Thread] = []
        self._running = 0
        self._counts: Counter[str] = Counter()
        self._dropped_written = 0
        self._unreported: tuple[str, str] | None = None  # last failure: counter and error type
        self._warned_at = -WARN_SECONDS

    def __enter__(self) -> Shadow:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def counts(self) -> Counter[str]:
        """Comparisons so far: `written`, `dropped`, `failed` (the provider raised an error) and
        `unwritten` (the file could not be written)."""
        with self._condition:
            return self._counts.copy()

    def __call__(
        self, query: str, documents: Sequence[str], result: RerankResult, seconds: float
    ) -> None:
        """Compare the result of a `Router` with the ranking of `reranker`.

        Skips results of the provider of `reranker`, such as those of a fallback.

        Raises:
            ConfigurationError: the shadow has no `reranker`.
        """
        reranker = self._reranker
        if reranker is None:
            raise ConfigurationError("to compare a Router's results, pass a `reranker`")
        name = "jina" if isinstance(reranker, JinaClient) else "bge"
        if result.provider == name:
            return
        # A copy: the caller may change the list before it is compared.
        texts = [documents] if isinstance(documents, str) else list(documents)
        top_n = len(result) if len(result) < len(texts) else None
        self.offer(
            query,
            lambda: _indices(result),
            lambda: _indices(reranker.rerank(query, texts, top_n=top_n)),
            live_seconds=seconds,
            names=(result.provider, name),
            pool=len(texts),
        )

    def offer(
        self,
        query: str,
        live: Ranking | Callable[[], Ranking],
        candidate: Callable[[], Ranking],
        *,
        live_seconds: float,
        names: Names = ("bge", "jina"),
        pool: int | None = None,
    ) -> None:
        """Queue a comparison of the rankings `live` and `candidate`, if the query is sampled.

        A thread calls `candidate` later. If `live` is a function, it is called at once, and only
        for a sampled query. `live_seconds` is the latency of `live`. `pool` is the number of
        candidates that both providers rank, if known. Never raises.
        """
        if self._random.random() >= self._fraction:
            return
        try:
            ranking = live() if callable(live) else live
            if isinstance(ranking, Iterator):
                raise TypeError("reading an iterator would exhaust the caller's result")
            line = self._new_line(query, live_seconds, names)
            self._enqueue(_Comparison(line, tuple(ranking), candidate, pool))
        except Exception as error:
            self._record_failure("failed", error)
            with suppress(Exception):  # a thread cannot be started
                self._start_threads()

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Process the queue for at most `timeout` seconds. Drops the rest and records the count.

        A comparison still running after that is abandoned and writes nothing.
        """
        deadline = time.monotonic() + timeout
        with self._condition:
            if self._closing:
                return
            self._closing = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._condition:
            self._closed = True
            self._counts["dropped"] += len(self._queue) + self._running
            self._queue.clear()
        self._write_dropped()
        self._report()

    def _new_line(self, query: str, live_seconds: float, names: Names) -> dict[str, Any]:
        return {
            "kind": "comparison",
            "time": utc(time.time()),
            "query_sha256": hashlib.sha256(query.encode("utf-8", "replace")).hexdigest()[:16],
            "live": names[0],
            "other": names[1],
            "depth": self._depth,
            "live_ms": round(live_seconds * 1000, 3),
        }

    def _enqueue(self, comparison: _Comparison) -> None:
        self._start_threads()
        with self._condition:
            if self._closing:
                return
            if len(self._queue) >= self._max_waiting:
                self._counts["dropped"] += 1
                return
            self._queue.append(comparison)
            self._condition.notify()

    def _start_threads(self) -> None:
        """Start missing threads, and wake one if a failure is to be reported."""
        with self._condition:
            while len(self._threads) < self._workers and not self._closing:
                thread = threading.Thread(target=self._run, name="bge-shadow", daemon=True)
                thread.start()
                self._threads.append(thread)
            if self._unreported:
                self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._queue or self._unreported or self._closing)
                if not (self._queue or self._unreported):
                    return
                comparison = self._queue.popleft() if self._queue else None
                self._running += comparison is not None
            if comparison is not None and not self._finish(comparison):
                return  # `close` has counted it as dropped
            self._report()

    def _finish(self, comparison: _Comparison) -> bool:
        """Compare and write. Returns False if `close` has timed out meanwhile."""
        line = self._compare(comparison)
        with self._condition:
            if self._closed:
                return False
            self._running -= 1
        if self._write(line):
            self._count("written")
        self._write_dropped()
        return True

    def _compare(self, comparison: _Comparison) -> dict[str, Any]:
        """Return the line to write."""
        start = time.perf_counter()
        try:
            ranking = tuple(comparison.candidate())
            seconds = time.perf_counter() - start
            measures = agreement(comparison.live, ranking, self._depth, comparison.pool)
        except BaseException as error:  # even SystemExit: it would end only this thread
            self._record_failure("failed", error)
            return comparison.line | {"error": type(error).__name__}
        fields = {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in measures._asdict().items()
        }
        return comparison.line | {"other_ms": round(seconds * 1000, 3)} | fields

    def _write(self, line: dict[str, Any]) -> bool:
        """Append the line to the file. Returns whether it was written."""
        try:
            _append_line(self._path, json.dumps(line).encode() + b"\n", self._repair)
        except Exception as error:
            self._repair = True
            self._record_failure("unwritten", error)
            return False
        self._repair = False
        return True

    def _write_dropped(self) -> None:
        """Write the number dropped since the last write, in case the process is killed."""
        with self._condition:
            count = self._counts["dropped"] - self._dropped_written
            self._dropped_written += count
        line = {"kind": "dropped", "time": utc(time.time()), "count": count}
        if count and not self._write(line):
            with self._condition:
                self._dropped_written -= count

    def _count(self, counter: str) -> None:
        with self._condition:
            self._counts[counter] += 1

    def _record_failure(self, counter: str, error: BaseException) -> None:
        """Count a failure. `_report` logs it, so that a live query never runs a log handler."""
        with self._condition:
            self._counts[counter] += 1
            self._unreported = counter, type(error).__name__  # a message may quote a query or key

    def _report(self) -> None:
        """Log the last failure, at most one in `WARN_SECONDS`."""
        with self._condition:
            unreported, self._unreported = self._unreported, None
            now = time.monotonic()
            if unreported is None or now - self._warned_at < WARN_SECONDS:
                return
            self._warned_at = now
            counter, kind = unreported
            count = self._counts[counter]
        with suppress(BaseException):  # a handler's error would end this thread
            log.warning("shadow: %d comparisons %s so far, the last by %s", count, counter, kind)


def _append_line(path: Path, line: bytes, repair: bool) -> None:
    """Append a line in a single write, so that several processes can share the file.

    With `repair`, start with a line break if the file ends without one. This is not done for each
    line: another process may be in the middle of a write.

    Raises:
        OSError: the line could not be written completely.
    """
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if repair and size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line
        if file.write(line) != len(line):
            raise OSError("the line was written incompletely")


def _indices(result: RerankResult) -> list[int]:
    return [document.index for document in result]


def utc(seconds: float) -> str:
    """Return a time as it is written in the file. Texts and times have the same order."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
