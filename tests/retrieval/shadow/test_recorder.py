"""Shadow mode has no effect on live queries."""

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

from bge_client import Client, Endpoint, JinaClient, Route, Router, errors
from bge_retrieval.shadow import Shadow, ShadowedSearch, recorder, summarize
from fakes.scripted import Scripted, completed, status

TIMEOUT = 20  # seconds, more than any thread needs
SECRET = "Как найти минимум?"
KEY = "jina_0123456789"


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """The event that a hanging provider waits for. Set at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]


def offer(shadow: Shadow, candidate: Callable[[], Any] = list, query: str = SECRET) -> None:
    shadow.offer(query, ["a", "b"], candidate, live_seconds=0.25)


def hanging(gate: threading.Event) -> tuple[Callable[[], list[str]], threading.Event]:
    """Return a ranking function that blocks until the gate opens, and an event set by its call."""
    called = threading.Event()

    def ranking() -> list[str]:
        called.set()
        assert gate.wait(TIMEOUT)
        return ["b", "a"]

    return ranking, called


def test_live_query_does_not_wait_for_the_comparison(path: Path, gate: threading.Event) -> None:
    ranking, called = hanging(gate)
    live = ["a", "b"]
    with Shadow(path, fraction=1) as shadow:
        search = ShadowedSearch(lambda query: live, lambda query: ranking(), shadow)
        assert search.search(SECRET) is live
        assert called.wait(TIMEOUT)
        assert search.search(SECRET) is live  # while the comparison hangs
        live.clear()  # has no effect on the comparison
        assert not path.exists()
        gate.set()
    assert [line["overlap"] for line in read_lines(path)] == [1.0, 1.0]


def test_failures_are_counted_and_logged_once_a_minute_without_their_message(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> list[str]:
        raise PermissionError(f"{KEY} may not ask {SECRET}")

    with caplog.at_level(logging.DEBUG), Shadow(path, fraction=1) as shadow:
        for candidate in (
            failing,
            failing,
            lambda: sys.exit(SECRET),
            lambda: [["no id"]],
            lambda: ["a"],
        ):
            offer(shadow, candidate)
        shadow.offer(SECRET, lambda: failing(), list, live_seconds=0.0)
    kinds = [line.get("error") for line in read_lines(path)]
    assert kinds == ["PermissionError", "PermissionError", "SystemExit", "TypeError", None]
    assert shadow.counts == Counter(failed=5, written=5)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "PermissionError" in record.message
    messages = caplog.text + path.read_text("utf-8")
    assert SECRET not in messages
    assert KEY not in messages

    monkeypatch.setattr(recorder, "WARN_SECONDS", 0)
    with Shadow(path, fraction=1) as shadow:
        offer(shadow, failing)
        offer(shadow, failing)
    assert len(caplog.records) == 3


def test_iterator_result_is_not_consumed(path: Path) -> None:
    with Shadow(path, fraction=1) as shadow:
        for ids in (None, list):
            search = ShadowedSearch(lambda _: iter("ab"), lambda _: iter("ab"), shadow, ids=ids)
            assert list(search.search(SECRET)) == ["a", "b"]
        shadow.offer(SECRET, once := iter("ab"), list, live_seconds=0.0)  # type: ignore[arg-type]
    assert list(once) == ["a", "b"]
    assert shadow.counts == Counter(failed=3)
    assert not path.exists()


def test_log_handler_that_raises_is_harmless(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def warning(*_: object) -> None:
        threads.append(threading.current_thread().name)
        raise SystemExit(SECRET)

    monkeypatch.setattr(recorder.log, "warning", warning)
    monkeypatch.setattr(recorder, "WARN_SECONDS", 0)
    with Shadow(path, fraction=1) as shadow:
        shadow.offer(SECRET, iter, list, live_seconds=0.0)  # type: ignore[arg-type]
        offer(shadow, lambda: [][1])
        offer(shadow)
    assert shadow.counts == Counter(failed=2, written=2)
    assert set(threads) == {"bge-shadow"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_child_of_a_fork_compares_too(path: Path) -> None:
    """The parent forks, in a subprocess, while its lock is held and its thread is busy."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, str(path)],
        timeout=TIMEOUT,
    )
    assert process.returncode == 0
    assert sorted(line["live"] for line in read_lines(path)) == ["child", "parent"]


FORK = """
import os, sys, threading
from bge_retrieval.shadow import Shadow

shadow = Shadow(sys.argv[1], fraction=1)
gate, called = threading.Event(), threading.Event()

def hangs():
    called.set()
    gate.wait(10)
    return [1]

shadow.offer("q", [1], hangs, live_seconds=0.0, names=("parent", "x"))
called.wait(10)
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
def test_unwritable_file_is_harmless(
    file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Shadow(tmp_path / file, fraction=1) as shadow:
        assert ShadowedSearch(lambda _: ["a"], lambda _: ["a"], shadow).search(SECRET) == ["a"]
    assert shadow.counts == Counter(unwritten=1)
    (record,) = caplog.records
    assert record.message.endswith(("by FileNotFoundError", "by OSError"))


def test_full_queue_drops_and_records_the_count(path: Path, gate: threading.Event) -> None:
    ranking, called = hanging(gate)
    with Shadow(path, fraction=1, max_waiting=2) as shadow:
        offer(shadow, ranking)
        assert called.wait(TIMEOUT)
        for _ in range(5):
            offer(shadow)
        assert shadow.counts == Counter(dropped=3)
        gate.set()
    assert shadow.counts == Counter(dropped=3, written=3)
    kinds = [line["kind"] for line in read_lines(path)]
    assert kinds == ["comparison", "dropped", "comparison", "comparison"]  # before `close`
    assert read_lines(path)[1]["count"] == 3


def test_close_abandons_a_hanging_comparison(path: Path, gate: threading.Event) -> None:
    ranking, called = hanging(gate)
    shadow = Shadow(path, fraction=1)
    offer(shadow, ranking)
    offer(shadow)
    assert called.wait(TIMEOUT)
    (worker,) = (thread for thread in threading.enumerate() if thread.name == "bge-shadow")
    shadow.close(timeout=0.01)
    gate.set()
    worker.join(TIMEOUT)
    assert not worker.is_alive()
    offer(shadow)
    shadow.close()
    assert [(line["kind"], line["count"]) for line in read_lines(path)] == [("dropped", 2)]


def sampled(path: Path, fraction: float) -> list[int]:
    """Return which of a thousand queries are sampled."""
    sampled_queries: list[int] = []

    def live(number: int) -> list[int]:
        sampled_queries.append(number)
        return [number]

    with Shadow(path, fraction=fraction, max_waiting=1000, seed=7) as shadow:
        for number in range(1000):
            shadow.offer("q", lambda number=number: live(number), list, live_seconds=0.0)
    return sampled_queries


def test_fraction_is_respected_and_seed_is_deterministic(path: Path) -> None:
    assert sampled(path, 0) == []
    assert not path.exists()
    sample = sampled(path, 0.3)
    assert 250 < len(sample) < 350
    assert sampled(path, 0.3) == sample
    assert sampled(path, 1) == list(range(1000))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"fraction": 1.5}, "`fraction` must be in 0..1. Given: 1.5"),
        ({"fraction": float("nan")}, "`fraction` must be in 0..1. Given: nan"),
        ({"depth": 0}, "`depth` must be at least 1. Given: 0"),
        ({"max_waiting": 0}, "`max_waiting` must be at least 1. Given: 0"),
        ({"workers": 0}, "`workers` must be at least 1. Given: 0"),
    ],
)
def test_invalid_option_is_named(option: dict[str, Any], message: str, path: Path) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        Shadow(path, **option)
    assert str(caught.value) == message


def test_line_has_the_documented_fields(path: Path) -> None:
    with Shadow(path, fraction=1, depth=3) as shadow:
        shadow.offer(
            "море", [3, 1, 2, 9], lambda: [1, 3, 4, 9], live_seconds=0.25, names=("x", "y")
        )
    (line,) = read_lines(path)
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
from bge_retrieval.shadow import Shadow

shadow = Shadow(sys.argv[1], fraction=1, max_waiting=500, workers=2)
for number in range(500):
    shadow.offer(str(number), list(range(10)), lambda: [1, 2], live_seconds=0.0)
shadow.close(timeout=60)
"""


def test_processes_share_a_file_without_torn_lines(path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(path)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    hashes = Counter(line["query_sha256"] for line in read_lines(path))
    assert len(hashes) == 500
    assert set(hashes.values()) == {2}


def test_incomplete_line_is_skipped_and_the_next_starts_on_a_new_line(path: Path) -> None:
    with Shadow(path, fraction=1) as shadow:
        offer(shadow)
    complete_line = path.read_bytes()
    path.write_bytes(complete_line + complete_line[:50])
    assert (summarize(path).count, summarize(path).broken) == (1, 1)
    with Shadow(path, fraction=1) as shadow:
        offer(shadow)
    path.write_bytes(path.read_bytes() + complete_line[:3])
    assert (summarize(path).count, summarize(path).broken) == (2, 2)


DOCUMENTS = ["море", "суша и море", "лес"]  # the fake worker ranks by length: 1, 0, 2


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


def make_router(endpoint: Scripted, shadow: Shadow, provider: str = "bge") -> Router:
    """Return a router of the endpoint and its fallback, or of Jina alone."""
    jina = JinaClient(KEY, base=endpoint.url)
    bge = Endpoint(Client(endpoint.url, timeout=TIMEOUT), check_health=provider == "auto")
    route = Route("scores", [jina] if provider == "jina" else [bge, jina])
    return Router(route, route, on_rerank=shadow)


def jina_shadow(endpoint: Scripted, path: Path) -> Shadow:
    return Shadow(path, reranker=JinaClient(KEY, base=endpoint.url), fraction=1)


def test_router_compares_rankings_in_the_background(
    endpoint: Scripted, path: Path, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    def late(exchange: Any) -> None:
        assert gate.wait(TIMEOUT)
        jina_rerank(exchange)

    endpoint.on("POST /v1/rerank", late)
    documents = list(DOCUMENTS)
    shadow = jina_shadow(endpoint, path)
    with caplog.at_level(logging.DEBUG), make_router(endpoint, shadow) as router, shadow:
        ranked = router.rerank(SECRET, documents)
        assert [document.index for document in ranked] == [1, 0, 2]
        assert ranked.provider == "bge"
        documents.clear()
        gate.set()
    (line,) = read_lines(path)
    assert (line["live"], line["other"]) == ("bge", "jina")
    assert (line["overlap"], line["tau"], line["same_first"]) == (None, 0.333333, True)
    messages = caplog.text + path.read_text("utf-8")
    for secret in (SECRET, KEY, *DOCUMENTS):
        assert secret not in messages


def test_router_compares_with_the_other_provider(endpoint: Scripted, path: Path) -> None:
    shadow = Shadow(path, reranker=Client(endpoint.url, timeout=TIMEOUT), fraction=1)
    with make_router(endpoint, shadow, provider="jina") as router, shadow:
        assert [document.index for document in router.rerank(SECRET, DOCUMENTS, top_n=2)] == [1, 2]
    (line,) = read_lines(path)
    assert (line["live"], line["other"], line["same_first"]) == ("jina", "bge", True)
    assert line["overlap"] == 0.5  # [1, 2] and [1, 0]


def test_live_result_survives_failure_of_the_other_provider(endpoint: Scripted, path: Path) -> None:
    endpoint.on("POST /v1/rerank", status(401, {"detail": f"no such key {KEY}"}))
    shadow = jina_shadow(endpoint, path)
    with make_router(endpoint, shadow) as router, shadow:
        assert router.rerank(SECRET, DOCUMENTS)[0].index == 1
    assert [line["error"] for line in read_lines(path)] == ["AuthenticationError"]


@pytest.mark.parametrize("provider", ["bge", "auto"])
def test_fallback_result_is_not_compared(provider: str, endpoint: Scripted, path: Path) -> None:
    endpoint.on("GET /health", status(200, {"workers": {"unhealthy": 1}}))
    endpoint.on("POST /runsync", status(401))
    shadow = jina_shadow(endpoint, path)
    with make_router(endpoint, shadow, provider) as router, shadow:
        assert router.rerank(SECRET, DOCUMENTS).provider == "jina"
    assert shadow.counts == Counter()
    assert not path.exists()


def test_shadow_without_a_reranker_does_not_affect_the_router(
    endpoint: Scripted, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Shadow(path, fraction=1) as shadow, make_router(endpoint, shadow) as router:
        assert router.rerank(SECRET, DOCUMENTS)[0].index == 1
    assert "on_rerank failed: ConfigurationError" in caplog.text
    assert not path.exists()
