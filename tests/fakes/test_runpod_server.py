"""The fake against the SDK's worker loop, and its bookkeeping against a manual worker."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from fakes.runpod_server import JobServer
from fakes.worker_process import WorkerProcess

ECHO = """
import asyncio, os, runpod

async def handler(job):
    await asyncio.sleep(job["input"].get("seconds", 0))
    return {"echo": job["input"]}

if __name__ == "__main__":
    slots = int(os.environ["SLOTS"])
    runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda _: slots})
"""


@pytest.fixture
def server() -> Iterator[JobServer]:
    """For manual workers: an empty poll returns soon."""
    with JobServer(poll_seconds=0.05) as server:
        yield server


@pytest.fixture
def slow_server() -> Iterator[JobServer]:
    """For the SDK: polls stay open for a while, as on the platform."""
    with JobServer() as server:
        yield server


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    return script


class ManualWorker:
    """Sends the requests of the SDK one at a time."""

    def __init__(self, server: JobServer) -> None:
        self._variables = server.environment()
        self.name = self._variables["RUNPOD_POD_ID"]

    def take(self) -> Any:
        return self._request(self._url("GET_JOB") + "&job_in_progress=0")

    def take_batch(self, size: int) -> Any:
        url = self._url("GET_JOB").replace("/job-take/", "/job-take-batch/")
        return self._request(f"{url}&batch_size={size}&job_in_progress=0")

    def stops(self) -> Any:
        return self._request(self._url("GET_JOB").replace("/job-take/", "/job-stop/"))

    def answer(self, job_id: str, raw: str) -> None:
        url = self._url("POST_OUTPUT").replace("$ID", job_id)
        self._request(f"{url}&isStream=false", raw)

    def poll_and_disconnect(self, server: JobServer) -> None:
        """Poll for a job and disconnect before there is one."""
        url = urlsplit(self._url("GET_JOB"))
        with socket.create_connection((url.hostname, url.port)) as connection:
            connection.sendall(f"GET {url.path}?{url.query} HTTP/1.1\r\n\r\n".encode())
            server.wait_for(lambda: self.name in server.workers)

    def _url(self, webhook: str) -> str:
        url = self._variables[f"RUNPOD_WEBHOOK_{webhook}"].replace("$RUNPOD_POD_ID", self.name)
        return url.replace("$ID", self.name) if webhook == "GET_JOB" else url

    def _request(self, url: str, body: str | None = None) -> Any:
        parts = urlsplit(url)
        with closing(HTTPConnection(parts.netloc, timeout=10)) as connection:
            method = "GET" if body is None else "POST"
            connection.request(method, f"{parts.path}?{parts.query}", body and body.encode())
            response = connection.getresponse()
            return None if response.status == 204 else json.loads(response.read())


def test_jobs_are_handed_out_in_order_and_up_to_the_batch_size(server: JobServer) -> None:
    worker = ManualWorker(server)
    jobs = [server.submit({"n": n}) for n in range(4)]

    assert worker.take_batch(3) == [{"id": jobs[n], "input": {"n": n}} for n in range(3)]
    assert worker.take() == {"id": jobs[3], "input": {"n": 3}}
    assert worker.take() is None
    assert server.taken == jobs


def test_cancel_withdraws_a_waiting_job_and_stops_a_running_one(
    server: JobServer,
) -> None:
    worker, bystander = ManualWorker(server), ManualWorker(server)
    running, waiting = server.submit({}), server.submit({})
    worker.take()

    server.cancel(running)
    server.cancel(waiting)

    assert bystander.stops() is None
    assert worker.stops() == {"jobsToStop": [running]}
    assert worker.take() is None


def test_answered_job_is_not_stopped(server: JobServer) -> None:
    worker = ManualWorker(server)
    job = server.submit({})
    worker.take()
    worker.answer(job, "{}")

    server.cancel(job)

    assert worker.stops() is None


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ('{"output": NaN}', "NaN is not JSON"),
        ('{"output": -Infinity}', "-Infinity is not JSON"),
        ('{"output": ', "Expecting value"),
        ("[]", "must be an object, not list"),
        ('{"error": {"message": "no"}}', "`error` must be a string"),
    ],
)
def test_invalid_reply_fails_its_job(server: JobServer, raw: str, message: str) -> None:
    worker = ManualWorker(server)
    job = server.submit({})
    worker.take()
    worker.answer(job, raw)

    with pytest.raises(AssertionError, match=message):
        server.result(job)
    assert len(server.violations) == 1
    assert job not in server.results


def test_second_answer_is_kept_and_is_a_violation(server: JobServer) -> None:
    worker = ManualWorker(server)
    job = server.submit({})
    worker.take()
    worker.answer(job, '{"output": 1}')
    worker.answer(job, '{"output":"ü"}')

    assert server.result(job) == {"output": 1}
    assert [answer.body["output"] for answer in server.results[job]] == [1, "ü"]
    assert [answer.size for answer in server.results[job]] == [13, 15]
    assert server.violations == [f"{job}: answered again"]


def test_only_the_worker_that_took_a_job_may_answer_it(server: JobServer) -> None:
    worker, stranger = ManualWorker(server), ManualWorker(server)
    job = server.submit({})
    worker.take()
    stranger.answer(job, "{}")
    stranger.answer("job-99", "{}")

    assert server.violations == [
        f"{job}: answered by {stranger.name}, which did not take it",
        "job-99: answered, but there is no such job",
    ]


def test_timeout_of_a_job_names_its_state(server: JobServer) -> None:
    job = server.submit({})

    with pytest.raises(TimeoutError, match=f"{job}: not taken"):
        server.result(job, timeout=0.01)
    ManualWorker(server).take()
    with pytest.raises(TimeoutError, match=f"{job}: taken"):
        server.result(job, timeout=0.01)


def test_worker_killed_while_polling_loses_no_job(slow_server: JobServer) -> None:
    ManualWorker(slow_server).poll_and_disconnect(slow_server)
    job = slow_server.submit({})

    assert ManualWorker(slow_server).take()["id"] == job


def test_output_of_a_script_that_fails_to_start_is_shown(server: JobServer, tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit('no model here')")

    with WorkerProcess(script, server) as worker, pytest.raises(RuntimeError) as failure:
        worker.wait_ready()
    assert "exited with 1" in str(failure.value)
    assert "no model here" in str(failure.value)


def test_sdk_answers_each_job_once_with_its_own_payload(slow_server: JobServer, echo: Path) -> None:
    # The SDK sleeps for a second each time its slots are full: 4 slots would take 13 s.
    with WorkerProcess(echo, slow_server, {"SLOTS": "32"}) as worker:
        worker.wait_ready()
        jobs = {slow_server.submit({"n": n}): n for n in range(50)}

        replies = {job: slow_server.result(job) for job in jobs}

    assert replies == {job: {"output": {"echo": {"n": n}}} for job, n in jobs.items()}
    assert all(len(answers) == 1 for answers in slow_server.results.values())
    assert sorted(slow_server.taken) == sorted(jobs)
    assert slow_server.violations == []


def test_sdk_stops_a_cancelled_job_and_reuses_its_slot(slow_server: JobServer, echo: Path) -> None:
    held = [slow_server.submit({"seconds": 60}) for _ in range(4)]
    with WorkerProcess(echo, slow_server, {"SLOTS": "4"}) as worker:
        _wait_in_progress(slow_server, held)
        waiting = slow_server.submit({"n": 1})

        slow_server.cancel(held[0])

        assert slow_server.result(waiting) == {"output": {"echo": {"n": 1}}}
        assert "Job stopped." in worker.stdout
    assert set(slow_server.results) == {waiting}  # the SDK posts nothing for a job it stopped
    assert slow_server.violations == []


def test_sdk_answers_its_jobs_after_sigterm(slow_server: JobServer, echo: Path) -> None:
    # All slots are full, so no poll is open: the SDK never answers a job polled after the signal.
    running = [slow_server.submit({"seconds": 2, "n": n}) for n in range(4)]
    with WorkerProcess(echo, slow_server, {"SLOTS": "4"}) as worker:
        _wait_in_progress(slow_server, running)
        worker.terminate()
        late = slow_server.submit({})

        assert worker.wait() == 0

    assert {job: len(answers) for job, answers in slow_server.results.items()} == dict.fromkeys(
        running, 1
    )
    assert late not in slow_server.taken
    assert slow_server.violations == []


def _wait_in_progress(server: JobServer, jobs: list[str]) -> None:
    """Wait for a ping that names exactly these jobs."""
    server.wait_for(
        lambda: server.pings and sorted(server.pings[-1].get("job_id", "").split(",")) == jobs,
        timeout=30,
    )
