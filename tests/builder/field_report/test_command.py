"""A run of the field report: interrupted, resumed, at its cap; nothing is left on RunPod."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from bge_builder.__main__ import main
from bge_builder.field_report import cloud, command
from bge_builder.field_report.cloud import PlatformStep
from bge_builder.field_report.record import ReportError
from builder.field_report.conftest import FakeSteps
from fakes.runpod_api import KEY, Answer, RunPodApi

IMAGE = "registry.example/bge-serverless:0.1.0"
TITLES = ["a", "b", "c", "d"]


def report(*arguments: str) -> int:
    return main(["field-report", "--image", IMAGE, *arguments])


class KilledError(BaseException):
    """The process is gone: nothing is deleted."""


@pytest.mark.parametrize("title", TITLES)
def test_an_interrupted_run_deletes_its_endpoints_and_goes_on(
    title: str, api: RunPodApi, fake_steps: FakeSteps
) -> None:
    fake_steps.faults[title] = KeyboardInterrupt()
    assert report() == 130
    assert api.endpoints == {}
    done = TITLES[: TITLES.index(title)]
    assert fake_steps.ran == [*done, title]
    assert report() == 0
    assert fake_steps.ran == [*done, title, *TITLES[len(done) :]]
    assert api.endpoints == {}


@pytest.mark.parametrize("title", TITLES)
def test_a_killed_run_leaves_endpoints_that_the_next_one_deletes(
    title: str, api: RunPodApi, fake_steps: FakeSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_steps.faults[title] = KilledError()
    with monkeypatch.context() as killed:
        killed.setattr(command, "close", lambda context: None)
        with pytest.raises(KilledError):
            report()
    assert len(api.endpoints) == 1
    assert report() == 0
    assert sorted(set(fake_steps.ran)) == TITLES
    assert api.endpoints == {}


def test_clean_deletes_what_is_left_and_nothing_else(
    api: RunPodApi, fake_steps: FakeSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["deploy", IMAGE, "--wait", "0"]) == 0
    fake_steps.faults["a"] = KilledError()
    monkeypatch.setattr(command, "close", lambda context: None)
    with pytest.raises(KilledError):
        report()
    assert main(["field-report", "--clean"]) == 0
    assert [endpoint["name"] for endpoint in api.endpoints.values()] == ["bge-serverless"]


def test_one_endpoint_exists_at_a_time_with_one_worker(
    api: RunPodApi, fake_steps: FakeSteps
) -> None:
    assert report() == 0
    (_, queue), (_, balancer) = api.writes
    assert (queue["type"], balancer["type"]) == ("QUEUE", "LOAD_BALANCER")
    assert queue["workers"]["max"] == balancer["workers"]["max"] == 1
    assert api.deleted == [endpoint_id for endpoint_id, _ in api.writes]


def test_a_run_stops_before_the_step_that_could_exceed_the_cap(
    api: RunPodApi,
    fake_steps: FakeSteps,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bge_builder.field_report.budget.PRICES", {"AMPERE_24": 1, "ADA_24": 1})
    assert report("--max-dollars", "609") == 1  # 10 s of a step, 600 of a start
    assert "step `queue: a` could bring the cost to $610.00, above" in capsys.readouterr().err
    assert fake_steps.ran == []
    assert report("--max-dollars", "620") == 0
    assert api.endpoints == {}


def test_a_failed_step_is_a_result_and_runs_again(
    api: RunPodApi, fake_steps: FakeSteps, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_steps.faults["b"] = ReportError("a worker still runs")
    assert report() == 1
    assert "queue: b: ReportError: a worker still runs" in capsys.readouterr().out
    assert report() == 0
    assert fake_steps.ran == [*TITLES, "b"]


@pytest.mark.parametrize("path", ["/serverless", "/serverless/ep00000001/workers"])
def test_endpoints_are_deleted_after_a_refusal(
    path: str, api: RunPodApi, fake_steps: FakeSteps
) -> None:
    method = "POST" if path == "/serverless" else "GET"
    api.answers[f"{method} {path}"] = Answer(400, json.dumps({"title": "no"}))
    assert report() == 1
    assert api.endpoints == {}


def test_an_endpoint_that_cannot_be_deleted_is_told(
    api: RunPodApi, fake_steps: FakeSteps, capsys: pytest.CaptureFixture[str]
) -> None:
    api.answers["DELETE /serverless/ep00000001"] = Answer(503, "{}")
    assert report() == 1
    error = capsys.readouterr().err
    assert "an endpoint may be left, at a cost" in error
    assert "make field-report CLEAN=1" in error


def test_a_rehearsal_writes_no_report(
    api: RunPodApi, fake_steps: FakeSteps, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report() == 0
    assert "a rehearsal: no report is written" in capsys.readouterr().out
    assert not [*tmp_path.glob("*.json")]


def test_another_image_does_not_go_on_with_a_run(
    api: RunPodApi, fake_steps: FakeSteps, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_steps.faults["b"] = KeyboardInterrupt()
    assert report() == 130
    assert main(["field-report", "--image", "other:1"]) == 1
    assert f"is an unfinished field report of {IMAGE}" in capsys.readouterr().err


def test_nothing_printed_or_stored_holds_the_key(
    api: RunPodApi, fake_steps: FakeSteps, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_steps.faults["b"] = ReportError(f"refused {KEY}")
    report()
    stored = "".join(path.read_text("utf-8") for path in tmp_path.rglob("*.json"))
    assert stored
    assert KEY not in stored + "".join(capsys.readouterr())


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_creation_leaves_no_endpoint(
    name: signal.Signals, api: RunPodApi, fake_steps: FakeSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = api.create

    def interrupted_create(body: dict[str, Any]) -> tuple[int, Any]:
        os.kill(os.getpid(), name)
        return create(body)

    monkeypatch.setattr(api, "create", interrupted_create)
    assert report() == 130
    assert api.endpoints == {}


def test_an_api_that_is_unavailable_for_a_while_does_not_prevent_the_deletion(
    api: RunPodApi, fake_steps: FakeSteps
) -> None:
    api.answers["GET /serverless"] = Answer(503, "{}")
    assert report() == 1  # it cannot be shown that no other is left
    assert api.endpoints == {}


def test_a_step_that_takes_too_long_ends(
    api: RunPodApi, fake_steps: FakeSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "START_SECONDS", 0)
    slow = PlatformStep("slow", "queue", 0.3, lambda context: {"done": time.sleep(30)})
    monkeypatch.setattr(cloud, "STEPS", (slow, *fake_steps.steps))
    assert report() == 1
    assert fake_steps.ran == TITLES
    assert api.endpoints == {}


def test_clean_ends_what_the_next_run_would_count_as_paid(
    api: RunPodApi, fake_steps: FakeSteps, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_steps.faults["a"] = KilledError()
    with monkeypatch.context() as killed:
        killed.setattr(command, "close", lambda context: None)
        with pytest.raises(KilledError):
            report()
    assert main(["field-report", "--clean"]) == 0
    (lease,) = json.loads((tmp_path / "unfinished" / "cloud.json").read_text("utf-8"))["leases"]
    assert lease["end"] is not None


@pytest.mark.parametrize("dollars", ["nan", "inf", "0", "-1"])
def test_a_cap_that_is_none_is_refused(
    dollars: str, api: RunPodApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report("--max-dollars", dollars) == 1
    assert "`MAX_DOLLARS` must be above 0" in capsys.readouterr().err


def test_a_failed_step_keeps_the_results_and_the_file_of_the_report(
    api: RunPodApi, fake_steps: FakeSteps, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "REAL_API", api.url)
    fake_steps.faults["b"] = ReportError("no")
    assert report() == 1
    assert report() == 0
    assert fake_steps.ran == [*TITLES, "b"]
    (path,) = tmp_path.glob("*.json")
    assert "failed" not in path.read_text("utf-8")
    assert not (tmp_path / "unfinished" / "cloud.json").exists()


def test_ids_of_endpoints_are_not_stored(
    api: RunPodApi, fake_steps: FakeSteps, tmp_path: Path
) -> None:
    fake_steps.faults["b"] = ReportError("no response from https://ep00000001.api.runpod.ai")
    report()
    stored = (tmp_path / "unfinished" / "cloud.json").read_text("utf-8")
    assert "https://ENDPOINT.api.runpod.ai" in stored
    assert "ep0000" not in stored
