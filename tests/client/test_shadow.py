"""Shadow mode: the measures are right, and the live query notices nothing of it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from bge_client import Client, JinaClient, Route, Router, Shadow, ShadowedSearch, errors
from bge_client.shadow import agreement, comparing, kendall_tau, rank_biased_overlap, summarize
from fakes.scripted import Scripted, completed, status

SOON = 20  # seconds within which a thread surely does what it will do
SECRET = "Как найти минимум?"
KEY = "jina_0123456789"
ORDERS = st.lists(st.integers(0, 15), unique=True, max_size=12)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shadow.jsonl"


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a provider that hangs waits for; open in the end, whatever the test does."""
    event = threading.Event()
    yield event
    event.set()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]


def offer(to: Shadow, other: Callable[[], Any] = list, query: str = SECRET) -> None:
    to.offer(query, ["a", "b"], other, live_seconds=0.25)


def hanging(gate: threading.Event) -> tuple[Callable[[], list[str]], threading.Event]:
    """An order that comes when the gate opens, and what says that it was asked for."""
    asked = threading.Event()

    def order() -> list[str]:
        asked.set()
        assert gate.wait(SOON)
        return ["b", "a"]

    return order, asked


# --------------------------------------------------------------------------------- measures


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ("ab", "ba", 0.9),  # X = 0, 2: 0.1 · 0.9 · 1 + 0.81 · 1
        ("abc", "acd", 0.685),  # X = 1, 1, 2: 0.1 · (1 + 0.9/2 + 0.81 · 2/3) + 0.729 · 2/3
        ("a", "ba", 0.45),  # X = 0, 1; X_s = 0: 0.1 · 0.9/2 + 0.81 · 1/2
        ("ab", "acb", 0.82),  # X = 1, 1, 2; X_s = 1: 0.2125 + 0.729 · (1/3 + 1/2)
        ("abc", "abcdef", 1.0),  # all that both know is the same
        ("", "a", 0.0),
        ("", "", 1.0),
    ],
)
def test_rank_biased_overlap_is_that_of_the_paper(one: str, two: str, expected: float) -> None:
    assert rank_biased_overlap(one, two, 0.9) == pytest.approx(expected, abs=1e-12)


@given(ORDERS, ORDERS)
def test_rank_biased_overlap_is_symmetric_and_in_0_to_1(one: list[int], two: list[int]) -> None:
    found = rank_biased_overlap(one, two)
    assert 0 <= found <= 1
    assert found == pytest.approx(rank_biased_overlap(two, one), abs=1e-12)
    assert rank_biased_overlap(one, one) == pytest.approx(1)
    if two and not set(one) & set(two):
        assert found == 0
    if two:
        assert rank_biased_overlap(one, [-1 - item for item in two]) == 0


@given(ORDERS, ORDERS)
def test_kendall_s_tau_is_scipy_s(one: list[int], two: list[int]) -> None:
    common = [item for item in one if item in two]
    if len(common) < 2:
        assert kendall_tau(one, two) is None
        return
    ranks = [two.index(item) for item in common]
    expected = scipy.stats.kendalltau(range(len(common)), ranks, variant="b").statistic
    assert kendall_tau(one, two) == pytest.approx(expected)


def test_agreement_looks_no_deeper_than_told_and_counts_an_id_once() -> None:
    found = agreement(["a", "a", "b", "c"], ["a", "c", "b"], depth=2)  # a b, and a c
    assert (found.overlap, found.tau, found.same_first) == (0.5, None, True)
    assert agreement(["a"], ["b", "a", "c", "d"], depth=10).overlap == 0.25
    assert agreement([], [], depth=10) == (1.0, 1.0, None, True)


def test_of_all_there_are_an_overlap_says_nothing() -> None:
    assert agreement([0, 1, 2], [2, 1, 0], depth=10, pool=3).overlap is None
    assert agreement([0, 1], [2, 1], depth=10, pool=3).overlap == 0.5


# --------------------------------------------------------------------------------- the live query


def test_a_live_query_does_not_wait_for_the_other(path: Path, gate: threading.Event) -> None:
    order, asked = hanging(gate)
    live = ["a", "b"]
    with Shadow(path, fraction=1) as made:
        search = ShadowedSearch(lambda query: live, lambda query: order(), made)
        assert search.search(SECRET) is live
        assert asked.wait(SOON)
        assert search.search(SECRET) is live  # and while it hangs
        live.clear()  # what the caller does with it then is no matter
        assert not path.exists()
        gate.set()
    assert [line["overlap"] for line in lines(path)] == [1.0, 1.0]


def test_what_goes_wrong_is_counted_and_told_once_a_minute_without_its_message(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong() -> list[str]:
        raise PermissionError(f"{KEY} may not ask {SECRET}")

    with caplog.at_level(logging.DEBUG), Shadow(path, fraction=1) as made:
        for other in (wrong, wrong, lambda: sys.exit(SECRET), lambda: [["no id"]], lambda: ["a"]):
            offer(made, other)
        made.offer(SECRET, lambda: wrong(), list, live_seconds=0.0)
    kinds = [line.get("error") for line in lines(path)]
    assert kinds == ["PermissionError", "PermissionError", "SystemExit", "TypeError", None]
    assert made.counts == Counter(failed=5, written=5)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "PermissionError" in record.message
    told = caplog.text + path.read_text("utf-8")
    assert SECRET not in told
    assert KEY not in told

    monkeypatch.setattr(comparing, "WARN_SECONDS", 0)
    with Shadow(path, fraction=1) as made:
        offer(made, wrong)
        offer(made, wrong)
    assert len(caplog.records) == 3


def test_an_answer_that_can_be_read_once_is_left_to_the_caller(path: Path) -> None:
    with Shadow(path, fraction=1) as made:
        for ids in (None, list):
            search = ShadowedSearch(lambda _: iter("ab"), lambda _: iter("ab"), made, ids=ids)
            assert list(search.search(SECRET)) == ["a", "b"]
        made.offer(SECRET, once := iter("ab"), list, live_seconds=0.0)  # type: ignore[arg-type]
    assert list(once) == ["a", "b"]
    assert made.counts == Counter(failed=3)
    assert not path.exists()


def test_a_log_handler_that_raises_harms_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def warning(*_: object) -> None:
        told.append(threading.current_thread().name)
        raise SystemExit(SECRET)

    monkeypatch.setattr(comparing.log, "warning", warning)
    monkeypatch.setattr(comparing, "WARN_SECONDS", 0)
    with Shadow(path, fraction=1) as made:
        made.offer(SECRET, iter, list, live_seconds=0.0)  # type: ignore[arg-type]
        offer(made, lambda: [][1])
        offer(made)
    assert made.counts == Counter(failed=2, written=2)
    assert set(told) == {"bge-shadow"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork_the_child_compares_too(path: Path) -> None:
    """In a process of its own. The parent forks while its lock is held and its thread at work."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, str(path)],
        timeout=SOON,
    )
    assert ran.returncode == 0
    assert sorted(line["live"] for line in lines(path)) == ["child", "parent"]


FORK = """
import os, sys, threading
from bge_client import Shadow

shadow = Shadow(sys.argv[1], fraction=1)
gate, asked = threading.Event(), threading.Event()

def hangs():
    asked.set()
    gate.wait(10)
    return [1]

shadow.offer("q", [1], hangs, live_seconds=0.0, names=("parent", "x"))
asked.wait(10)
with shadow._condition:
    child = os.fork()
if child == 0:
    shadow.offer("q", [1], lambda: [1], live_seconds=0.0, names=("child", "x"))
    shadow.close()
    os._exit(shadow.counts["written"] != 1)
_, status = os.waitpid(child, 0)
gate.set()
shadow.close()
sys.exit(status != 0)
"""


@pytest.mark.parametrize("file", ["missing/shadow.jsonl", "/dev/full"])
def test_a_file_that_cannot_be_written_harms_nobody(
    file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Shadow(tmp_path / file, fraction=1) as made:
        assert ShadowedSearch(lambda _: ["a"], lambda _: ["a"], made).search(SECRET) == ["a"]
    assert made.counts == Counter(unwritten=1)
    (record,) = caplog.records
    assert record.message.endswith(("by FileNotFoundError", "by OSError"))


def test_what_does_not_fit_is_dropped_and_said_to_be(path: Path, gate: threading.Event) -> None:
    order, asked = hanging(gate)
    with Shadow(path, fraction=1, max_waiting=2) as made:
        offer(made, order)
        assert asked.wait(SOON)
        for _ in range(5):
            offer(made)
        assert made.counts == Counter(dropped=3)
        gate.set()
    assert made.counts == Counter(dropped=3, written=3)
    kinds = [line["kind"] for line in lines(path)]
    assert kinds == ["comparison", "dropped", "comparison", "comparison"]  # before it is closed
    assert lines(path)[1]["count"] == 3


def test_closing_leaves_behind_what_hangs(path: Path, gate: threading.Event) -> None:
    order, asked = hanging(gate)
    made = Shadow(path, fraction=1)
    offer(made, order)
    offer(made)
    assert asked.wait(SOON)
    (thread,) = (one for one in threading.enumerate() if one.name == "bge-shadow")
    made.close(timeout=0.01)
    gate.set()
    thread.join(SOON)
    assert not thread.is_alive()
    offer(made)
    made.close()
    assert [(line["kind"], line["count"]) for line in lines(path)] == [("dropped", 2)]


# --------------------------------------------------------------------------------- sampling


def sampled(path: Path, fraction: float) -> list[int]:
    """Which of a thousand queries are compared."""
    taken: list[int] = []

    def live(number: int) -> list[int]:
        taken.append(number)
        return [number]

    with Shadow(path, fraction=fraction, max_waiting=1000, seed=7) as made:
        for number in range(1000):
            made.offer("q", lambda number=number: live(number), list, live_seconds=0.0)
    return taken


def test_the_fraction_is_kept_and_a_seed_chooses_the_same_queries(path: Path) -> None:
    assert sampled(path, 0) == []
    assert not path.exists()
    some = sampled(path, 0.3)
    assert 250 < len(some) < 350
    assert sampled(path, 0.3) == some
    assert sampled(path, 1) == list(range(1000))


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"fraction": 1.5}, "`fraction` must be in 0..1. Given: 1.5"),
        ({"fraction": float("nan")}, "`fraction` must be in 0..1. Given: nan"),
        ({"depth": 0}, "`depth` must be at least 1. Given: 0"),
        ({"max_waiting": 0}, "`max_waiting` must be at least 1. Given: 0"),
        ({"workers": 0}, "`workers` must be at least 1. Given: 0"),
    ],
)
def test_a_wrong_option_is_named(option: dict[str, Any], sentence: str, path: Path) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        Shadow(path, **option)
    assert str(caught.value) == sentence


# --------------------------------------------------------------------------------- the file


def test_a_line_holds_what_is_promised(path: Path) -> None:
    with Shadow(path, fraction=1, depth=3) as made:
        made.offer("море", [3, 1, 2, 9], lambda: [1, 3, 4, 9], live_seconds=0.25, names=("x", "y"))
    (line,) = lines(path)
    assert time.strptime(line.pop("time"), "%Y-%m-%dT%H:%M:%SZ")
    assert line.pop("other_ms") >= 0
    assert line == {
        "kind": "comparison",
        "query_sha256": "127eee75ef5d6b65",
        "live": "x",
        "other": "y",
        "depth": 3,
        "live_ms": 250.0,
        "overlap": 0.666667,
        "rbo": 0.63,  # X = 0, 2, 2: 0.1 · (0.9 + 0.81 · 2/3) + 0.729 · 2/3
        "tau": -1.0,
        "same_first": False,
    }


PROCESS = """
import sys
from bge_client import Shadow

shadow = Shadow(sys.argv[1], fraction=1, max_waiting=500, workers=2)
for number in range(500):
    shadow.offer(str(number), list(range(10)), lambda: [1, 2], live_seconds=0.0)
shadow.close(timeout=60)
"""


def test_processes_share_a_file_without_torn_lines(path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(path)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    hashes = Counter(line["query_sha256"] for line in lines(path))
    assert len(hashes) == 500
    assert set(hashes.values()) == {2}


def test_half_a_line_is_skipped_and_the_next_begins_anew(path: Path) -> None:
    with Shadow(path, fraction=1) as made:
        offer(made)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    assert (summarize(path).count, summarize(path).broken) == (1, 1)
    with Shadow(path, fraction=1) as made:
        offer(made)
    path.write_bytes(path.read_bytes() + whole[:3])
    assert (summarize(path).count, summarize(path).broken) == (2, 2)


@pytest.mark.parametrize(
    "line",
    [
        b"hello",
        b"[1]",
        b"\xff\xfe",
        b'{"kind": "order"}',
        b'{"kind": "comparison", "live": "bge"}',
        b'{"kind": "dropped", "count": "many"}',
        b'{"kind": "dropped", "count": 1e400}',
        b'{"kind": "comparison", "live": "a", "other": "b", "live_ms": 1e400, "error": "x"}',
        b"[" * 100_000,
    ],
)
def test_a_foreign_line_is_named(line: bytes, path: Path) -> None:
    path.write_bytes(b'{"kind": "dropped", "count": 1}\n' + line + b"\n")
    with pytest.raises(errors.ConfigurationError, match="line 2, was not written by a `Shadow`"):
        summarize(path)


def test_the_summary_is_right(path: Path) -> None:
    def line(overlap: float, tau: float | None, first: bool, ms: float) -> dict[str, Any]:
        about = {"kind": "comparison", "live": "bge", "other": "jina", "live_ms": ms}
        found = {"overlap": overlap, "rbo": overlap, "tau": tau, "same_first": first}
        return about | found | {"other_ms": 10 * ms}

    failed = {"kind": "comparison", "live": "jina", "other": "bge", "live_ms": 30.0}
    written = [
        *(line(0.0, None, False, 1.0), line(0.5, -1.0, True, 2.0), line(1.0, 1.0, True, 3.0)),
        line(0.5, None, True, 2.0) | {"overlap": None},
        *(failed | {"error": kind} for kind in ("DeadlineError", "JobError", "DeadlineError")),
        *({"kind": "dropped", "count": count} for count in (2, 3)),
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in written), "utf-8")
    found = json.loads(json.dumps(summarize(path).as_dict()))
    one, two = found.pop("pairs")
    assert found == {
        "count": 4,
        "errors": {"DeadlineError": 2, "JobError": 1},
        "dropped": 5,
        "broken": 0,
    }
    assert one == {
        "live": "bge",
        "other": "jina",
        "count": 4,
        "errors": {},
        "overlap": {"mean": 0.5, "p10": pytest.approx(0.1), "p50": 0.5},  # of three
        "rbo": {"mean": 0.5, "p10": pytest.approx(0.15), "p50": 0.5},
        "tau": {"mean": 0.0, "p10": pytest.approx(-0.8), "p50": 0.0},
        "same_first": 0.75,
        "live_ms": {"p50": 2.0, "p99": pytest.approx(2.97)},
        "other_ms": {"p50": 20.0, "p99": pytest.approx(29.7)},
    }
    assert (two["live"], two["other"], two["count"]) == ("jina", "bge", 0)
    assert two["errors"] == found["errors"]
    assert two["live_ms"] == {"p50": 30.0, "p99": 30.0}
    assert two["other_ms"] is two["overlap"] is two["same_first"] is None
    path.write_bytes(b"")
    assert (summarize(path).count, summarize(path).pairs) == (0, [])


# --------------------------------------------------------------------------------- the router


DOCUMENTS = ["море", "суша и море", "лес"]  # ours ranks by length: 1, 0, 2


def jina_rerank(exchange: Any) -> None:
    results = [{"index": index, "relevance_score": 1 - index / 9} for index in (1, 2, 0)]
    top_n = exchange.body.get("top_n")
    status(200, {"usage": {"total_tokens": 5}, "results": results[:top_n]})(exchange)


@pytest.fixture
def endpoint() -> Iterator[Scripted]:
    with Scripted() as endpoint:
        endpoint.on("POST /runsync", completed)
        endpoint.on("POST /v1/rerank", jina_rerank)
        yield endpoint


def routed(endpoint: Scripted, made: Shadow, **options: Any) -> Router:
    one = Route("scores", Client(endpoint.url, timeout=SOON), **options)
    return Router(one, one, JinaClient(KEY, base=endpoint.url), shadow=made)


def test_the_router_compares_orders_while_the_live_one_has_long_been_given(
    endpoint: Scripted, path: Path, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    def late(exchange: Any) -> None:
        assert gate.wait(SOON)
        jina_rerank(exchange)

    endpoint.on("POST /v1/rerank", late)
    documents = list(DOCUMENTS)
    made = Shadow(path, fraction=1)
    with caplog.at_level(logging.DEBUG), routed(endpoint, made) as router, made:
        ranked = router.rerank(SECRET, documents)
        assert [one.index for one in ranked] == [1, 0, 2]
        assert ranked.provider == "bge"
        documents.clear()
        gate.set()
    (line,) = lines(path)
    assert (line["live"], line["other"]) == ("bge", "jina")
    assert (line["overlap"], line["tau"], line["same_first"]) == (None, 0.333333, True)
    told = caplog.text + path.read_text("utf-8")
    for secret in (SECRET, KEY, *DOCUMENTS):
        assert secret not in told


def test_the_router_asks_whichever_did_not_answer(endpoint: Scripted, path: Path) -> None:
    made = Shadow(path, fraction=1)
    with routed(endpoint, made, provider="jina") as router, made:
        assert [one.index for one in router.rerank(SECRET, DOCUMENTS, top_n=2)] == [1, 2]
    (line,) = lines(path)
    assert (line["live"], line["other"], line["same_first"]) == ("jina", "bge", True)
    assert line["overlap"] == 0.5  # two of each: 1 2, and 1 0


def test_a_live_answer_survives_the_other_s_failure(endpoint: Scripted, path: Path) -> None:
    endpoint.on("POST /v1/rerank", status(401, {"detail": f"no such key {KEY}"}))
    made = Shadow(path, fraction=1)
    with routed(endpoint, made) as router, made:
        assert router.rerank(SECRET, DOCUMENTS)[0].index == 1
    assert [line["error"] for line in lines(path)] == ["AuthenticationError"]


@pytest.mark.parametrize("provider", ["bge", "auto"])
def test_a_fallback_s_answer_is_not_compared(provider: str, endpoint: Scripted, path: Path) -> None:
    endpoint.on("GET /health", status(200, {"workers": {"unhealthy": 1}}))
    endpoint.on("POST /runsync", status(401))
    made = Shadow(path, fraction=1)
    with routed(endpoint, made, provider=provider, fallback=True) as router, made:
        assert router.rerank(SECRET, DOCUMENTS).provider == "jina"
    assert made.counts == Counter()
    assert not path.exists()


def test_a_shadow_needs_both_providers(endpoint: Scripted, path: Path) -> None:
    ours = {"BGE_RERANKER_ENDPOINT": endpoint.url}
    only_jina = {"EMBEDDINGS_PROVIDER": "jina", "RERANKER_PROVIDER": "jina", "JINA_API_KEY": KEY}
    with Shadow(path) as made:
        for env in (ours, only_jina):
            with pytest.raises(errors.ConfigurationError, match="needs both providers"):
                Router.from_env({"BGE_EMBEDDINGS_ENDPOINT": ""} | env, shadow=made)
        Router.from_env(ours | only_jina, shadow=made).close()
