"""`make deploy STATUS=1` and `make undeploy` against a fake RunPod API."""

from __future__ import annotations

import io
from typing import Any

import pytest

from bge_builder.__main__ import main
from fakes.runpod_api import Answer, RunPodApi, worker

ID = "ep00000001"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_status_shows_workers_release_and_cost(
    api: RunPodApi, deployed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    api.workers = [[worker("w1", "RUNNING", gpuTypeId="NVIDIA L4"), worker("w2", isStale=True)]]
    api.costs = {ID: 1.234, "another": 50}
    deployed["env"]["SOME_KEY"] = "secret-value"
    assert main(["status"]) == 0
    output = capsys.readouterr().out
    release = output.splitlines().pop(5)
    assert output == (
        f"endpoint bge-serverless ({ID}), QUEUE\n"
        "image registry.example/bge-serverless:0.1.0\n"
        "workers 0 to 3\n"
        "worker w1: running, NVIDIA L4\n"
        "worker w2: idle, of an older version\n"
        f"{release}\n"
        "rollout: 1 of 2 workers run the last release\n"
        "cost of 7 days: $1.23\n"
    )
    assert release.startswith("release 1 of 2026-11-01T12:00:00Z changed ")
    assert api.writes == []


def test_status_of_an_endpoint_that_was_scaled_to_nothing(
    api: RunPodApi, deployed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    deployed["workers"]["max"] = 0
    api.answers["GET /billing/serverless"] = Answer(403, '{"title": "Forbidden"}')
    assert main(["status"]) == 0
    output = capsys.readouterr().out
    assert "no worker will start: `workers.max` is 0. `make deploy` raises it\n" in output
    assert output.endswith("cost unknown: GET /billing/serverless: HTTP 403 Forbidden\n")


@pytest.mark.parametrize("command", ["status", "undeploy"])
def test_an_endpoint_that_does_not_exist_is_an_error(
    command: str, api: RunPodApi, deployed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--type", "lb"]) == 1
    assert "no endpoint has the name bge-serverless-lb" in capsys.readouterr().err
    assert api.deleted == []


@pytest.mark.parametrize("target", [[], ["--endpoint", ID], ["--type", "lb", "--endpoint", ID]])
def test_undeploy_deletes_the_endpoint(
    target: list[str], api: RunPodApi, deployed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["undeploy", "--yes", *target]) == 0
    assert api.deleted == [ID]
    output = capsys.readouterr().out
    assert output.startswith(f"endpoint bge-serverless ({ID}), QUEUE\n")
    assert output.endswith(f"deleted: {ID}, with its workers and the jobs in its queue\n")


def test_undeploy_refuses_to_delete_unasked_without_a_terminal(
    api: RunPodApi,
    deployed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{ID}\n"))
    assert main(["undeploy"]) == 1
    assert "pass YES=1" in capsys.readouterr().err
    assert api.deleted == []


@pytest.mark.parametrize(("typed", "deleted"), [(f"{ID}\n", [ID]), ("y\n", []), ("", [])])
def test_undeploy_asks_for_the_id_on_a_terminal(
    typed: str,
    deleted: list[str],
    api: RunPodApi,
    deployed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    assert main(["undeploy"]) == (not deleted)
    assert api.deleted == deleted


def test_a_wait_must_be_a_number_of_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("nan", "-1", "inf", "x"):
        with pytest.raises(SystemExit):
            main(["deploy", "image", "--wait", value])
        assert "argument --wait: " in capsys.readouterr().err
