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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from .errors import ConfigurationError

log = logging.getLogger("bge_client")

Id = str | int
Order = Sequence[Id]  # best first
Names = tuple[str, str]  # the provider that answered, and the other
Found = TypeVar("Found")

PERSISTENCE = 0.9  # of the rank-biased overlap: the first ten ranks have 86 % of the weight
WARN_SECONDS = 60.0  # between two warnings
CLOSE_SECONDS = 5.0
START = b'{"kind": "'  # how each line begins, so that half a line is known for one of ours


# --------------------------------------------------------------------------------- agreement


class Agreement(NamedTuple):
    """How alike two orders are, down to one depth; an id that comes twice counts once.

    `overlap` is the share of ids in common, of as many as the longer order has, None where all
    there are must be in both; `rbo` see `rank_biased_overlap`; `tau` see `kendall_tau`;
    `same_first` whether both begin alike. Two empty orders agree.
    """

    overlap: float | None
    rbo: float
    tau: float | None
    same_first: bool


def agreement(
    one: Iterable[Id], two: Iterable[Id], depth: int, pool: int | None = None
) -> Agreement:
    """`pool` is how many ids there are to be ordered, where that is known."""
    first, second = (list(dict.fromkeys(order))[:depth] for order in (one, two))
    longer = max(len(first), len(second))
    common = len(set(first) & set(second))
    overlap = common / longer if longer else 1.0
    return Agreement(
        overlap=None if pool is not None and pool <= longer else overlap,
        rbo=rank_biased_overlap(first, second),
        tau=kendall_tau(first, second),
        same_first=first[:1] == second[:1],
    )


def rank_biased_overlap(one: Order, two: Order, p: float = PERSISTENCE) -> float:
    """RBO_ext in 0..1 of two orders without repetitions, of any two lengths.

    Equation 32 of Webber, Moffat, Zobel: A similarity measure for indefinite rankings, ACM TOIS
    28(4), 2010. The agreement seen down to the end is taken to go on below it.
    """
    short, long = sorted((one, two), key=len)
    if not short:
        return 0.0 if long else 1.0
    s, shared, common = len(short), 0, 0
    seen: tuple[set[Id], set[Id]] = set(), set()
    total = 0.0
    for depth, item in enumerate(long, 1):
        seen[0].add(item)
        if depth <= s:
            seen[1].add(short[depth - 1])
            common += short[depth - 1] in seen[0] and short[depth - 1] != item
        common += item in seen[1]
        if depth == s:
            shared = common  # X_s: what lies below the shorter order's end would hold as much
        below = max(0, depth - s)
        total += (common + shared * below / s) / depth * p**depth
    tail = ((common - shared) / len(long) + shared / s) * p ** len(long)
    return min(1.0, (1 - p) / p * total + tail)  # rounding errors may pass 1


def kendall_tau(one: Order, two: Order) -> float | None:
    """Kendall's tau of the common items, -1..1; None if fewer than two are common.

    It is tau-b, which equals tau-a here: no two items of an order have the same rank.
    """
    places = {item: place for place, item in enumerate(two)}
    ranks = np.array([places[item] for item in one if item in places])
    if len(ranks) < 2:
        return None
    signs = np.sign(ranks[None, :] - ranks[:, None])  # [i, j]: 1 if both orders have i above j
    pairs = len(ranks) * (len(ranks) - 1) / 2
    return float(np.triu(signs).sum() / pairs)


# --------------------------------------------------------------------------------- comparing


class _Job(NamedTuple):
    line: dict[str, Any]  # what is known of it before it is done
    live: Order
    other: Callable[[], Order]
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
        live: Order | Callable[[], Order],
        other: Callable[[], Order],
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


class ShadowedSearch(Generic[Found]):
    """A search whose results are, now and then, compared with those of another.

    For embeddings: vectors of two models cannot be compared, what is found with them can. `live`
    and `other` find ids, best first, or something that `ids` takes them from. Without `ids`, only
    a sequence is compared, and an iterator never is: it could be read only once.
    """

    def __init__(
        self,
        live: Callable[[str], Found],
        other: Callable[[str], Found],
        shadow: Shadow,
        *,
        names: Names = ("bge", "jina"),
        ids: Callable[[Any], Order] | None = None,
    ) -> None:
        self._live, self._other, self._shadow = live, other, shadow
        self._names, self._ids = names, ids

    def search(self, query: str) -> Found:
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

    def _live_ids(self, found: Any) -> Order:
        """Raises TypeError: to look at it might empty what the caller has."""
        if isinstance(found, Iterator) or not (self._ids or isinstance(found, Sequence)):
            raise TypeError("neither a sequence, nor something that `ids` could be taken from")
        return self._taken(found)

    def _taken(self, found: Any) -> Order:
        return self._ids(found) if self._ids else list(found)


# --------------------------------------------------------------------------------- summary


@dataclass(frozen=True)
class Spread:
    mean: float
    p10: float
    p50: float


@dataclass(frozen=True)
class Latency:
    """In milliseconds."""

    p50: float
    p99: float


@dataclass(frozen=True)
class Pair:
    """What was compared of one provider's answers, `live`, with those of `other`.

    `count` comparisons were made, and `errors`, by their type, stand where the other one did not
    answer. The live one's latency is what the caller waited; the other's is of answers only.
    """

    live: str
    other: str
    count: int
    errors: dict[str, int]
    overlap: Spread | None
    rbo: Spread | None
    tau: Spread | None
    same_first: float | None  # share
    live_ms: Latency
    other_ms: Latency | None


@dataclass(frozen=True)
class ShadowSummary:
    """What a file of comparisons says, by pair of providers; None where nothing was measured.

    `count` and `errors` are of all pairs; `dropped` were given up, `broken` lines are half ones,
    of killed processes.
    """

    count: int
    errors: dict[str, int]
    dropped: int
    broken: int
    pairs: list[Pair]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Lines:
    """What the lines so far hold of one pair."""

    errors: Counter[str] = field(default_factory=Counter)
    live_ms: list[float] = field(default_factory=list)
    other_ms: list[float] = field(default_factory=list)
    measures: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in Agreement._fields}
    )

    def add(self, line: dict[str, Any]) -> None:
        self.live_ms.append(float(line["live_ms"]))
        if "error" in line:
            self.errors[str(line["error"])] += 1
            return
        self.other_ms.append(float(line["other_ms"]))
        for name, values in self.measures.items():
            if line[name] is not None:
                values.append(float(line[name]))

    def pair(self, live: str, other: str) -> Pair:
        same_first = self.measures["same_first"]
        return Pair(
            live,
            other,
            count=len(same_first),
            errors=dict(self.errors.most_common()),
            overlap=_spread(self.measures["overlap"]),
            rbo=_spread(self.measures["rbo"]),
            tau=_spread(self.measures["tau"]),
            same_first=float(np.mean(same_first)) if same_first else None,
            live_ms=_latency(self.live_ms),
            other_ms=_latency(self.other_ms) if self.other_ms else None,
        )


@dataclass
class _Read:
    """What the lines so far hold."""

    dropped: int = 0
    broken: int = 0
    pairs: dict[Names, _Lines] = field(default_factory=dict)

    def add(self, line: dict[str, Any]) -> None:
        """Raises KeyError, TypeError, ValueError: not a line of ours."""
        if line["kind"] == "dropped":
            self.dropped += int(line["count"])
        elif line["kind"] == "comparison":
            names = str(line["live"]), str(line["other"])
            self.pairs.setdefault(names, _Lines()).add(line)
        else:
            raise ValueError("another kind")


def summarize(path: str | os.PathLike[str]) -> ShadowSummary:
    """What the file that a `Shadow` wrote says; half lines are skipped and counted.

    Raises:
        ConfigurationError: a line is of something else; names it, counted from 1.
        OSError: the file cannot be read.
    """
    read = _read(Path(path))
    pairs = [lines.pair(*names) for names, lines in sorted(read.pairs.items())]
    errors = sum((lines.errors for lines in read.pairs.values()), Counter[str]())
    return ShadowSummary(
        count=sum(pair.count for pair in pairs),
        errors=dict(errors.most_common()),
        dropped=read.dropped,
        broken=read.broken,
        pairs=pairs,
    )


def _read(path: Path) -> _Read:
    read = _Read()
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.isspace():
                continue  # two processes at once saw half a line
            try:
                line = _parsed(raw)
                if line is None:
                    read.broken += 1
                else:
                    read.add(line)
            except (KeyError, TypeError, ValueError):
                raise ConfigurationError(
                    f"{path}, line {number}, was not written by a `Shadow`"
                ) from None
    return read


def _parsed(raw: bytes) -> Any:
    """None: it is half of a line of ours. Raises ValueError: no JSON, and not ours."""
    try:
        return json.loads(raw)
    except ValueError:
        if START.startswith(raw.rstrip(b"\n")[: len(START)]):
            return None
        raise


def _spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    return Spread(float(np.mean(values)), *np.percentile(values, (10, 50)).tolist())


def _latency(values: list[float]) -> Latency:
    return Latency(*np.percentile(values, (50, 99)).tolist())
