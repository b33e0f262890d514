"""The real SDK loop: `python worker/handler.py` takes jobs from a job server on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
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


ENGINES = ["packed", "flagembedding"]


LONG = 60.0


@pytest.fixture
def environment(runtimes: Callable[[EngineName], Path]) -> Callable[[EngineName], dict[str, str]]:
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


Environment = Callable[[EngineName], dict[str, str]]


Check = Callable[[dict[str, Any]], None]


def mixed_jobs(count: int) -> list[tuple[dict[str, Any], Check]]:
    """Payloads good and bad, each with what its answer must satisfy."""
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
        # Its own answer: equal texts have equal vectors, and other texts have others.
        for one, text in enumerate(texts):
            for other in range(one):
                same = sorted(text.split()) == sorted(texts[other].split())
                assert (vectors[one] @ vectors[other] > 0.9999) == same

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
            ({"texts": []}, "ValidationError: `texts` must not be empty. Given: an empty list"),
            ({"texts": "a", "max_length": 1}, "ValidationError: `max_length` must be an integer"),
            ({"query": "a"}, "ValidationError: `documents` is required"),
            (
                {"texts": ["a"] * 2048},
                "TooLargeError: the reply to `texts` must be at most",
            ),
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
def test_mixed_jobs_are_each_answered_once_and_rightly(
    environment: Environment, engine: EngineName, count: int
) -> None:
    with JobServer() as server, WorkerProcess(HANDLER, server, environment(engine)) as worker:
        worker.wait_ready(LONG)
        jobs = {server.submit(payload): check for payload, check in mixed_jobs(count)}
        for job, check in jobs.items():
            check(server.result(job, LONG))
        assert server.violations == []
        assert {job: len(answers) for job, answers in server.results.items()} == dict.fromkeys(
            jobs, 1
        )
        assert server.pings
        assert "море" not in worker.stdout + worker.stderr  # no texts in a log


def test_a_result_is_posted_again_until_runpod_has_it(environment: Environment) -> None:
    with JobServer() as server, WorkerProcess(HANDLER, server, environment("packed")) as worker:
        worker.wait_ready(LONG)
        server.faults.extend(["reset", 429])
        job = server.submit({"texts": "море"})
        assert "output" in server.result(job, LONG)
        assert server.violations == []


def test_a_result_that_is_refused_for_good_becomes_a_small_error(environment: Environment) -> None:
    with JobServer() as server, WorkerProcess(HANDLER, server, environment("packed")) as worker:
        worker.wait_ready(LONG)
        server.faults.append(413)
        job = server.submit({"texts": "море"})
        error = server.result(job, LONG)["error"]
        assert error.startswith("InferenceError: RunPod refused the result: HTTP 413 for ")
        assert worker.stderr.count("RunPod refused the result") == 1


def test_a_stop_while_a_result_waits_to_be_posted_loses_nothing(environment: Environment) -> None:
    with JobServer() as server, WorkerProcess(HANDLER, server, environment("packed")) as worker:
        worker.wait_ready(LONG)
        server.faults.extend([503] * 4)
        job = server.submit({"texts": "море"})
        server.wait_for(lambda: len(server.faults) < 4, LONG)
        worker.hang_up()  # as SIGTERM
        assert worker.wait(LONG) == 0
        assert job in server.results


def test_what_is_no_job_is_skipped_and_a_job_in_flight_is_not_taken_twice(
    environment: Environment,
) -> None:
    job = {"id": "good", "input": {"texts": "море"}, "self": 1, "webhook": "http://x"}
    no_jobs = [{"input": {"texts": "суша"}}, {"id": 7}, {"id": ""}, 1, None]
    with JobServer() as server, WorkerProcess(HANDLER, server, environment("packed")) as worker:
        worker.wait_ready(LONG)
        server.send(*no_jobs, job, job)
        assert "output" in server.result("good", LONG)
        later = server.submit({"texts": "море"})
        assert "output" in server.result(later, LONG)
        assert worker.stderr.count("sent a job without an id: skipped") == len(no_jobs)
        assert server.violations == []
        worker.terminate()
        assert worker.wait(LONG) == 0


def test_no_more_jobs_are_held_than_the_concurrency_allows(environment: Environment) -> None:
    env = environment("packed") | {"BGE_CONCURRENCY": "3"}
    with JobServer() as server, WorkerProcess(HANDLER, server, env) as worker:
        worker.wait_ready(LONG)
        jobs = [server.submit({"texts": ["море"] * 200}) for _ in range(20)]
        held = [0]

        def answered() -> bool:  # asked after every event
            held.append(len(server.held_by(worker.name)))
            return all(job in server.results for job in jobs)

        server.wait_for(answered, LONG)
        assert max(held) == 3
        assert not server.violations


def test_a_stop_in_the_middle_loses_no_job_that_was_taken(environment: Environment) -> None:
    settings = environment("packed") | {"BGE_CONCURRENCY": "16"}
    slow = {"texts": ["слово " * 400] * 40, "return_colbert": False}
    with JobServer() as server, WorkerProcess(HANDLER, server, settings) as worker:
        worker.wait_ready(LONG)
        for _ in range(64):
            server.submit(slow)
        server.wait_for(lambda: len(server.taken) >= 16, LONG)
        worker.terminate()
        assert worker.wait(LONG) == 0
        assert 16 <= len(server.taken) < 64
        assert sorted(server.results) == sorted(server.taken)
        assert server.violations == []


def test_a_job_that_an_open_poll_brings_after_the_stop_is_answered(
    environment: Environment,
) -> None:
    with (
        JobServer(poll_seconds=3) as server,
        WorkerProcess(HANDLER, server, environment("packed")) as worker,
    ):
        worker.wait_ready(LONG)
        worker.terminate()
        time.sleep(5 * PromptScaler.stop_check_seconds)  # it has looked, and the poll is still open
        job = server.submit({"texts": "море"})
        worker.wait(LONG)
        assert (job in server.results) == (job in server.taken)


def test_a_cancelled_job_frees_its_place(environment: Environment) -> None:
    settings = environment("packed") | {"BGE_MAX_QUEUE": "4", "BGE_CONCURRENCY": "4"}
    bulk = {"texts": ["слово " * 3000] * 60, "encoding_format": "base64"}
    with JobServer() as server, WorkerProcess(HANDLER, server, settings) as worker:
        worker.wait_ready(LONG)
        jobs = [server.submit(bulk) for _ in range(4)]
        # Not just taken: a stop for a job that waits in the SDK's own queue is ignored by it.
        server.wait_for(lambda: worker.stdout.count("Started.") == 4, LONG)
        for job in jobs:
            server.cancel(job)
        query = server.submit({"texts": "море"})
        assert "output" in server.result(query, LONG)
        assert not set(jobs) & set(server.results)
        assert worker.stdout.count("Stopping job") == 4


def test_a_worker_that_can_no_longer_answer_asks_to_be_replaced(packed: PackedEngine) -> None:
    service = Service(packed, Settings())
    answer = make_handler(service, UnloggedReply)
    good = asyncio.run(answer({"input": {"texts": "море"}}))
    assert repr(good) == "<8 fields>"  # the SDK formats every reply for its log
    assert len(json.loads(json.dumps(good))["embeddings"]) == 1
    bad = asyncio.run(answer({"input": {"texts": ""}}))
    assert [*bad] == ["error"]
    service.close()
    late = asyncio.run(answer({"input": {"texts": "море"}}))
    assert late == {
        "error": "OverloadedError: this worker is stopping",
        "refresh_worker": True,
    }


@pytest.mark.parametrize("engine", ENGINES)
def test_the_local_harness_answers_and_exits_1_on_a_failed_job(
    environment: Environment, engine: EngineName, tmp_path: Path
) -> None:
    def harness(payload: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        (tmp_path / "test_input.json").write_text(json.dumps({"input": payload}))
        return subprocess.run(
            [sys.executable, HANDLER],
            cwd=tmp_path,
            env=os.environ | environment(engine),
            capture_output=True,
            text=True,
            timeout=LONG,
        )

    good = harness({"texts": "море", "encoding_format": "base64"})
    assert good.returncode == 0, good.stderr
    assert "'embeddings': ['" in good.stdout
    bad = harness({"texts": " "})
    assert bad.returncode == 1
    assert "failed with error: ValidationError: `texts` must not be empty or blank" in bad.stdout


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"BGE_MAX_QUEUE": "-1"}, "`BGE_MAX_QUEUE` must be a whole number, at least 1"),
        ({"BGE_EMBED_MODEL": "/nowhere"}, "`/nowhere` is not a runtime folder"),
        (
            {"BGE_ENGINE": "flagembedding"},
            "converted for the engine packed; `BGE_ENGINE` is",
        ),
    ],
)
def test_a_worker_that_cannot_start_says_why_in_one_sentence(
    environment: Environment, change: dict[str, str], sentence: str
) -> None:
    run = subprocess.run(
        [sys.executable, HANDLER, "--test_input", '{"input": {"info": true}}'],
        env=os.environ | environment("packed") | change,
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert run.returncode == 1
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("arguments", [["--test_input", "no JSON"], []])
def test_a_test_input_that_is_no_json_is_one_sentence(
    environment: Environment, arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "test_input.json").write_text("{")
    run = subprocess.run(
        [sys.executable, HANDLER, *arguments],
        cwd=tmp_path,
        env=os.environ | environment("packed"),
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert run.returncode == 1
    assert "is not JSON" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_worker_imports_neither_transformers_nor_flagembedding(environment: Environment) -> None:
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
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment("packed"),
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert run.stdout.splitlines()[-1] == "loaded: ['torch']", run.stdout + run.stderr
