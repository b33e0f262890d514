"""The real SDK loop: `python worker/handler.py` takes jobs from a job server on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_worker.engine.engine import PackedEngine
from bge_worker.runpod.job_scaler import PromptScaler, UnloggedReply
from bge_worker.serving.service import Service
from bge_worker.settings import EngineName, Settings
from conftest import MODELS, ROOT
from fakes.runpod_server import JobServer
from fakes.worker_process import WorkerProcess
from handler import make_handler

HANDLER = ROOT / "worker" / "handler.py"
LONG = 60.0
Environment = Callable[[EngineName], dict[str, str]]
Check = Callable[[dict[str, Any]], None]


@pytest.fixture
def environment(runtimes: Callable[[EngineName], Path]) -> Environment:
    def variables(engine: EngineName) -> dict[str, str]:
        folder = runtimes(engine)
        return {
            "BGE_DEVICE": "cpu",
            "BGE_ENGINE": engine,
            "BGE_EMBED_MODEL": str(folder / MODELS[0]),
            "BGE_RERANK_MODEL": str(folder / MODELS[1]),
            "BGE_CONCURRENCY": "128",
        }

    return variables


@pytest.fixture
def env(environment: Environment) -> dict[str, str]:
    return environment("packed")


@contextmanager
def worker_of(
    env: dict[str, str], poll_seconds: float = 1.0
) -> Iterator[tuple[JobServer, WorkerProcess]]:
    """Yield a job server and a worker that has polled it; check that it kept the protocol."""
    with (
        JobServer(poll_seconds=poll_seconds) as server,
        WorkerProcess(HANDLER, server, env) as worker,
    ):
        worker.wait_ready(LONG)
        yield server, worker
        assert server.violations == []


def run_handler(env: dict[str, str], *arguments: str, cwd: Path | None = None) -> Any:
    return subprocess.run(
        [sys.executable, HANDLER, *arguments],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=LONG,
    )


# ------------------------------------------------------------------------ random jobs


def mixed_jobs(count: int) -> list[tuple[dict[str, Any], Check]]:
    """Return valid and invalid payloads, each with a check of its reply."""
    draw = random.Random(0)
    makers = [embed_job, rerank_job, bad_job, info_job]
    return [draw.choices(makers, [6, 4, 2, 1])[0](draw) for _ in range(count)]


def embed_job(draw: random.Random) -> tuple[dict[str, Any], Check]:
    words = ["море", "суша", "градиент", "transaction", "protein", "закон"]
    texts = [
        " ".join(draw.choices(words, k=draw.randint(1, 30))) for _ in range(draw.randint(1, 9))
    ]

    def check(body: dict[str, Any]) -> None:
        vectors = np.array(body["output"]["embeddings"])
        assert vectors.shape == (len(texts), 512)
        # A mix-up would show: texts of equal words have equal vectors, and no others have.
        for (a, text_a), (b, text_b) in combinations(enumerate(texts), 2):
            is_same = sorted(text_a.split()) == sorted(text_b.split())
            assert (vectors[a] @ vectors[b] > 0.9999) == is_same

    return {"texts": texts}, check


def rerank_job(draw: random.Random) -> tuple[dict[str, Any], Check]:
    documents = ["о море", "о суше", "о законе", "про градиент"]
    draw.shuffle(documents)
    best = draw.randrange(4)

    def check(body: dict[str, Any]) -> None:
        assert body["output"]["results"][0]["index"] == best

    return {"query": documents[best].split()[1], "documents": documents}, check


def bad_job(draw: random.Random) -> tuple[dict[str, Any], Check]:
    payload, message = draw.choice(
        [
            ({"texts": []}, "ValidationError: `texts` must be a list of length >= 1"),
            ({"texts": "a", "max_length": 1}, "ValidationError: `max_length` must be an integer"),
            ({"query": "a"}, "ValidationError: `documents` is required"),
            ({"texts": ["a"] * 2048}, "TooLargeError: the reply to `texts` must be at most"),
            ({"openai_route": "/v1/x"}, "ValidationError: `openai_route` must be"),
        ]
    )

    def check(body: dict[str, Any]) -> None:
        assert "output" not in body
        assert body["error"].startswith(message)

    return payload, check


def info_job(draw: random.Random) -> tuple[dict[str, Any], Check]:
    def check(body: dict[str, Any]) -> None:
        assert body["output"]["models"]["embed"]["model"] == "miniature/bge-m3"

    return {"info": True}, check


@pytest.mark.parametrize(("engine", "count"), [("packed", 300), ("flagembedding", 30)])
def test_mixed_jobs_are_each_answered_once(
    environment: Environment, engine: EngineName, count: int
) -> None:
    with worker_of(environment(engine)) as (server, worker):
        jobs = {server.submit(payload): check for payload, check in mixed_jobs(count)}
        for job, check in jobs.items():
            check(server.result(job, LONG))
        counts = {job: len(results) for job, results in server.results.items()}
        assert counts == dict.fromkeys(jobs, 1)
        assert server.pings
        assert "море" not in worker.stdout + worker.stderr  # no texts in a log


# ------------------------------------------------------------------------- delivery


def test_a_result_is_posted_again_after_a_transient_failure(env: dict[str, str]) -> None:
    with worker_of(env) as (server, _):
        server.faults.extend(["reset", 429])
        assert "output" in server.result(server.submit({"texts": "море"}), LONG)


def test_a_refused_result_is_replaced_by_an_error(env: dict[str, str]) -> None:
    with worker_of(env) as (server, worker):
        server.faults.append(413)
        error = server.result(server.submit({"texts": "море"}), LONG)["error"]
        assert error.startswith("InferenceError: RunPod refused the result: HTTP 413 for ")
        assert worker.stderr.count("RunPod refused the result") == 1


def test_a_stop_during_delivery_loses_no_result(env: dict[str, str]) -> None:
    with worker_of(env) as (server, worker):
        server.faults.extend([503] * 4)
        job = server.submit({"texts": "море"})
        server.wait_for(lambda: len(server.faults) < 4, LONG)
        worker.hang_up()  # as SIGTERM
        assert worker.wait(LONG) == 0
        assert job in server.results


# ---------------------------------------------------------------------- taking jobs


def test_malformed_and_repeated_jobs_are_skipped(env: dict[str, str]) -> None:
    job = {"id": "good", "input": {"texts": "море"}, "self": 1, "webhook": "http://x"}
    malformed = [{"input": {"texts": "суша"}}, {"id": 7}, {"id": ""}, 1, None]
    with worker_of(env) as (server, worker):
        server.send(*malformed, job, job)
        assert "output" in server.result("good", LONG)
        assert "output" in server.result(server.submit({"texts": "море"}), LONG)
        assert worker.stderr.count("sent a job without an id: skipped") == len(malformed)
        worker.terminate()
        assert worker.wait(LONG) == 0


def test_jobs_in_flight_stay_within_the_concurrency(env: dict[str, str]) -> None:
    with worker_of(env | {"BGE_CONCURRENCY": "3"}) as (server, worker):
        jobs = [server.submit({"texts": ["море"] * 200}) for _ in range(20)]
        in_flight = [0]

        def all_answered() -> bool:  # called after every event
            in_flight.append(len(server.held_by(worker.name)))
            return all(job in server.results for job in jobs)

        server.wait_for(all_answered, LONG)
        assert max(in_flight) == 3


def test_a_stopping_worker_answers_the_jobs_it_took(env: dict[str, str]) -> None:
    slow = {"texts": ["слово " * 400] * 10}
    with worker_of(env | {"BGE_CONCURRENCY": "16"}) as (server, worker):
        for _ in range(64):
            server.submit(slow)
        server.wait_for(lambda: len(server.taken) >= 16, LONG)
        worker.terminate()
        assert worker.wait(LONG) == 0
        assert 16 <= len(server.taken) < 64
        assert sorted(server.results) == sorted(server.taken)


def test_a_job_that_an_open_poll_returns_after_the_stop_is_answered(env: dict[str, str]) -> None:
    with worker_of(env, poll_seconds=3) as (server, worker):
        worker.terminate()
        time.sleep(5 * PromptScaler.stop_check_seconds)  # it has noticed; the poll is still open
        job = server.submit({"texts": "море"})
        worker.wait(LONG)
        assert (job in server.results) == (job in server.taken)


def test_a_cancelled_job_frees_its_slot(env: dict[str, str]) -> None:
    bulk = {"texts": ["слово " * 3000] * 60, "encoding_format": "base64"}
    with worker_of(env | {"BGE_MAX_QUEUE": "4", "BGE_CONCURRENCY": "4"}) as (server, worker):
        jobs = [server.submit(bulk) for _ in range(4)]
        # Started, not only taken: the SDK ignores a stop for a job in its own queue.
        server.wait_for(lambda: worker.stdout.count("Started.") == 4, LONG)
        for job in jobs:
            server.cancel(job)
        assert "output" in server.result(server.submit({"texts": "море"}), LONG)
        assert not set(jobs) & set(server.results)
        assert worker.stdout.count("Stopping job") == 4


def test_a_stopped_service_asks_for_another_worker(packed: PackedEngine) -> None:
    service = Service(packed, Settings())
    handler = make_handler(service, UnloggedReply)
    reply = asyncio.run(handler({"input": {"texts": "море"}}))
    assert repr(reply) == "<8 fields>"  # the SDK formats every reply for its log
    assert len(json.loads(json.dumps(reply))["embeddings"]) == 1
    assert [*asyncio.run(handler({"input": {"texts": ""}}))] == ["error"]
    service.close()
    refused = asyncio.run(handler({"input": {"texts": "море"}}))
    assert refused["error"].startswith("OverloadedError")
    assert refused.keys() == {"error", "refresh_worker"}
    assert refused["refresh_worker"] is True


# ------------------------------------------------------------------------- by hand


def test_the_local_harness_exits_with_1_after_a_failed_job(
    environment: Environment, tmp_path: Path
) -> None:
    def run(payload: dict[str, Any]) -> Any:
        (tmp_path / "test_input.json").write_text(json.dumps({"input": payload}))
        return run_handler(environment("packed"), cwd=tmp_path)

    good, bad = run({"texts": "море", "encoding_format": "base64"}), run({"texts": " "})
    assert good.returncode == 0, good.stderr
    assert "'embeddings': ['" in good.stdout
    assert bad.returncode == 1
    assert "failed with error: ValidationError: `texts` must not be empty or blank" in bad.stdout


INFO = ["--test_input", '{"input": {"info": true}}']


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (INFO, {"BGE_MAX_QUEUE": "-1"}, "`BGE_MAX_QUEUE` must be a whole number, at least 1"),
        (INFO, {"BGE_EMBED_MODEL": "/nowhere"}, "`/nowhere` is not a runtime folder"),
        (
            INFO,
            {"BGE_ENGINE": "flagembedding"},
            "for the engine packed; `engine` (`BGE_ENGINE`) is",
        ),
        (["--test_input", "no JSON"], {}, "`--test_input` is not JSON"),
        ([], {}, "`test_input.json` is not JSON"),
    ],
)
def test_a_failed_start_is_explained_without_a_traceback(
    env: dict[str, str],
    arguments: list[str],
    variables: dict[str, str],
    message: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "test_input.json").write_text("{")
    ended = run_handler(env | variables, *arguments, cwd=tmp_path)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_worker_imports_neither_transformers_nor_flagembedding(env: dict[str, str]) -> None:
    program = f"""
import runpy, sys
sys.argv = ["handler.py", "--test_input", '{{"input": {{"texts": "a"}}}}']
try:
    runpy.run_path({str(HANDLER)!r}, run_name="__main__")
except SystemExit as ending:
    assert ending.code == 0, ending.code
heavy = {{"transformers", "FlagEmbedding", "sentencepiece", "huggingface_hub", "torch"}}
print("loaded:", sorted(heavy & set(sys.modules)))
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(
        command, env=os.environ | env, capture_output=True, text=True, timeout=LONG
    )
    assert ended.stdout.splitlines()[-1] == "loaded: ['torch']", ended.stdout + ended.stderr
