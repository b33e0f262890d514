"""The wait after `make deploy`: states of workers, what fails, the first vector."""

from __future__ import annotations

import re
from typing import Any

import pytest

from bge_builder.__main__ import main
from bge_builder.deploy.api import Worker
from bge_builder.deploy.wait import History
from fakes.runpod_api import KEY, Answer, RunPodApi, worker
from fakes.scripted import Exchange, Scripted, completed, failed, job, raw, status

IMAGE = "registry.example/bge-serverless:0.1.0"
STARTED = {"startedAt": "2026-11-01T12:00:00Z", "gpuTypeId": "NVIDIA L4", "dataCenterId": "EU-1"}


def deploy(*arguments: str) -> int:
    return main(["deploy", IMAGE, *arguments])


def answer_first_job(endpoint: Scripted, *states: str) -> None:
    """Answer the probing job in these states, and the first request."""
    endpoint.on("POST /run", job("IN_QUEUE"))
    endpoint.on("GET /status/job-1", *(job(state) for state in states))
    endpoint.on("POST /cancel/job-1", job("CANCELLED"))
    endpoint.on("POST /runsync", completed)


def test_states_are_printed_as_they_change(
    api: RunPodApi, endpoint: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    answer_first_job(endpoint, *["IN_QUEUE"] * 4, "COMPLETED")
    api.workers = [
        [],
        [worker("w1", "THROTTLED")],
        [worker("w1", "THROTTLED")],
        [worker("w1", "INITIALIZING", **STARTED)],
        [worker("w1", "RUNNING", **STARTED)],
    ]
    assert deploy() == 0
    output = capsys.readouterr().out.partition("endpoint: ")[2].splitlines()[1:]
    states = [line.partition(" s  ")[2] for line in output]
    placed = "NVIDIA L4, EU-1, 2026-11-01T12:00:00Z"
    assert states[:4] == [
        "no worker",
        "worker w1: throttled",
        f"worker w1: initializing, {placed}",
        f"worker w1: running, {placed}",
    ]
    assert states[-3:-1] == ["a worker answers", "the endpoint answers: m, fingerprint f"]
    assert re.sub(r"[\d.]+ s", "n s", output[-1]) == (
        "stages: no worker n s, throttled n s, initializing n s, running n s, first vector n s"
    )


def test_a_load_balancer_is_ready_when_its_ping_is(
    api: RunPodApi, endpoint: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.on("GET /ping", status(400), raw(b"", 204), raw(b""))
    endpoint.on("POST /runsync", completed)
    api.workers = [[], [worker(status="RUNNING")]]  # running says the pod, not the server
    assert deploy("--type", "lb") == 0
    assert endpoint.routes()[:4] == ["GET /ping"] * 3 + ["POST /runsync"]
    assert endpoint.seen[0].headers["Authorization"] == f"Bearer {KEY}"


def test_a_job_that_is_lost_is_submitted_again(api: RunPodApi, endpoint: Scripted) -> None:
    answer_first_job(endpoint, "TIMED_OUT", "COMPLETED")
    endpoint.on("POST /run", status(500), job("IN_QUEUE"))
    assert deploy() == 0
    assert endpoint.routes().count("POST /run") == 3


def test_an_answer_of_an_older_version_does_not_count(api: RunPodApi, endpoint: Scripted) -> None:
    old = worker("old", isStale=True)
    answer_first_job(endpoint, "COMPLETED")
    api.workers = [[old], [old], [old, worker("new", "INITIALIZING")], [old, worker("new")]]
    assert deploy() == 0
    assert len(api.workers) == 1


def test_an_api_that_is_unavailable_for_a_while_is_waited_for(
    api: RunPodApi,
    endpoint: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fault = "GET /serverless/ep00000001/workers"
    api.answers[fault] = Answer(503, '{"title": "Busy"}')

    def recover(exchange: Exchange) -> None:
        api.answers.clear()
        job("IN_PROGRESS")(exchange)

    answer_first_job(endpoint)
    endpoint.on("GET /status/job-1", job("IN_QUEUE"), recover, job("COMPLETED"))
    assert deploy() == 0
    assert capsys.readouterr().out.count("HTTP 503 Busy") == 1


# --------------------------------------------------------------------- what does not get ready


def restarts() -> list[list[dict[str, Any]]]:
    """A container that ends at once is started again: only its time of start shows it."""
    return [
        [worker("w1", "INITIALIZING", startedAt=f"2026-11-01T12:00:0{second}Z")]
        for second in range(5)
    ]


@pytest.mark.parametrize(
    ("workers", "reason"),
    [
        ([[worker("w1", "UNHEALTHY", **STARTED)]], "worker w1 fails its health checks since"),
        (restarts(), "worker w1 started 3 times in vain"),
    ],
)
def test_a_failing_image_ends_the_wait_with_the_release_and_the_log(
    workers: list[list[dict[str, Any]]],
    reason: str,
    api: RunPodApi,
    endpoint: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer_first_job(endpoint, "IN_QUEUE")
    api.workers = workers
    api.logs["w1"] = [f"line {n}" for n in range(30)] + [f"bad \x1b[31m{KEY}"]
    assert deploy() == 3
    output, error = capsys.readouterr()
    assert error.startswith(f"error: {reason}")
    assert error.endswith(": the image does not start on RunPod\n")
    assert "\nrelease 1 of 2026-11-01T12:00:00Z changed " in output
    assert "\nrollout: 1 of 1 workers run the last release\n" in output
    assert "\nlog of worker w1:\n    container: line 11\n" in output
    assert "    container: bad  [31m***\n" in output
    assert output.endswith("`make undeploy ENDPOINT=ep00000001` deletes it\n")
    assert KEY not in output + error
    assert endpoint.routes()[-1] == "POST /cancel/job-1"


@pytest.mark.parametrize(
    ("workers", "reason"),
    [
        ([], "(no worker): RunPod calls a start over 7 minutes unhealthy"),
        ([worker("w1", "INITIALIZING")], "(initializing): RunPod calls a start over 7 minutes"),
        ([worker("w1", "THROTTLED")], "(throttled): RunPod has no free GPU of `gpu.pools`"),
    ],
)
def test_a_slow_start_ends_with_a_code_of_its_own(
    workers: list[dict[str, Any]],
    reason: str,
    api: RunPodApi,
    endpoint: Scripted,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer_first_job(endpoint, "IN_QUEUE")
    api.workers = [workers]
    assert deploy("--wait", "0.2") == 4
    output, error = capsys.readouterr()
    assert f"no worker is ready after 0 s {reason}" in error
    assert "endpoint ep00000001 remains" in output


def test_ctrl_c_says_what_was_created_and_withdraws_the_job(
    api: RunPodApi,
    endpoint: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    answer_first_job(endpoint, "IN_QUEUE")
    monkeypatch.setattr("bge_builder.deploy.wait.time.sleep", interrupt)
    assert deploy() == 130
    assert capsys.readouterr().out.endswith(
        "\ninterrupted. endpoint ep00000001 remains. `make deploy STATUS=1 ENDPOINT=ep00000001` "
        "shows it, `make undeploy ENDPOINT=ep00000001` deletes it\n"
    )
    assert endpoint.routes() == ["POST /run", "POST /cancel/job-1"]


def test_an_error_of_the_first_request_is_reported(
    api: RunPodApi, endpoint: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    answer_first_job(endpoint, "FAILED")
    endpoint.on("POST /runsync", failed("NotServedError: no model"))
    assert deploy() == 1
    assert "the endpoint does not answer: no model" in capsys.readouterr().err


@pytest.mark.parametrize("code", [401, 403])
def test_a_key_that_the_endpoint_refuses_ends_the_wait(
    code: int, api: RunPodApi, endpoint: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.on("POST /run", status(code))
    assert deploy() == 1
    assert f"the endpoint does not accept the key: HTTP {code}" in capsys.readouterr().err


def test_a_log_that_cannot_be_read_hides_nothing(
    api: RunPodApi, endpoint: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    answer_first_job(endpoint, "IN_QUEUE")
    api.workers = [[worker("w1", "UNHEALTHY")]]
    assert deploy() == 3
    output, error = capsys.readouterr()
    assert "/workers/w1/logs: HTTP 404" in output
    assert error.startswith("error: worker w1 fails its health checks")


@pytest.mark.parametrize(
    ("part", "body"),
    [
        ("releases", '{"releases": [{"diff": [7]}], "rollout": 7}'),
        ("releases", '{"releases": [7]}'),
        ("releases", "[]"),
        ("workers", '{"workers": [{"id": "w1", "status": 7, "gpuTypeId": {}}]}'),
    ],
)
def test_odd_replies_end_no_report_with_a_traceback(
    part: str, body: str, api: RunPodApi, endpoint: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    answer_first_job(endpoint, "IN_QUEUE")
    api.answers[f"GET /serverless/ep00000001/{part}"] = Answer(200, body)
    assert deploy("--wait", "0.05") == 4
    assert "endpoint ep00000001 remains" in capsys.readouterr().out


def test_secrets_of_other_variables_are_masked_in_a_log(
    api: RunPodApi, endpoint: Scripted, deployed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    deployed["env"]["SOMEBODY_S_TOKEN"] = "hf_another-secret"
    answer_first_job(endpoint, "IN_QUEUE")
    api.workers = [[worker("w1", "UNHEALTHY")]]
    api.logs["w1"] = ["token hf_another-secret"]
    assert deploy() == 3
    assert "container: token ***\n" in capsys.readouterr().out


def test_replaced_workers_count_only_if_they_had_started() -> None:
    """Waiting for capacity, RunPod tries one machine after another."""
    history = History()
    for number in range(9):
        history.update([Worker(f"w{number}", "THROTTLED")], number)
    assert history.failure(9) is None
    for number in range(4):
        history.update([Worker(f"s{number}", "INITIALIZING", started_at="12:00")], 10 + number)
    assert history.failure(14) == "replaced workers started 3 times in vain"


def test_the_rest_of_a_fleet_may_fail_while_a_worker_is_ready() -> None:
    history = History()
    workers = [Worker("w1", "IDLE"), Worker("w2", "UNHEALTHY")]
    for now in (0, 1000):
        history.update(workers, now)
    assert history.failure(1000) is None


def test_the_job_that_starts_a_worker_expires_with_the_wait(
    api: RunPodApi, endpoint: Scripted
) -> None:
    answer_first_job(endpoint, "COMPLETED")
    assert deploy("--wait", "60") == 0
    body = {"input": {"info": True}, "policy": {"ttl": 60_000}}
    assert endpoint.seen[0].body == body
