from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bge_builder.deploy import probes, wait
from bge_builder.field_report import cloud, command
from bge_builder.field_report import context as context_module
from bge_builder.field_report.cloud import PlatformStep
from bge_builder.field_report.context import Context
from fakes.runpod_api import KEY, RunPodApi
from fakes.scripted import Scripted, job, raw


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RunPodApi]:
    """RunPod's API; the reports are in a folder of the test."""
    with RunPodApi() as api:
        monkeypatch.setattr("bge_builder.deploy.api.API", api.url)
        monkeypatch.setenv("RUNPOD_API_KEY", KEY)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,.api.runpod.ai")
        monkeypatch.setattr(wait, "POLL_SECONDS", 0.01)
        monkeypatch.setattr(context_module, "DELETE_PAUSE", 0.01)
        monkeypatch.setattr(command, "FOLDER", tmp_path)
        monkeypatch.setattr(command, "UNFINISHED", tmp_path / "unfinished")
        yield api


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    """Every endpoint has a worker that answers."""
    with Scripted() as endpoint:
        urls = dict.fromkeys(("QUEUE", "LOAD_BALANCER"), endpoint.url)
        monkeypatch.setattr(probes, "URLS", urls)
        endpoint.on("POST /run", job("IN_QUEUE"))
        endpoint.on("GET /status/job-1", job("COMPLETED"))
        endpoint.on("GET /ping", raw(b""))
        yield endpoint


class FakeSteps:
    """Steps that only record that they ran. `faults` has what the next run of one raises."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.faults: dict[str, BaseException] = {}
        kinds = (("a", "queue"), ("b", "queue"), ("c", "lb"), ("d", "lb"))
        self.steps = tuple(PlatformStep(title, kind, 10, self.run(title)) for title, kind in kinds)  # type: ignore[arg-type]

    def run(self, title: str) -> Any:
        def run(context: Context) -> dict[str, Any]:
            self.ran.append(title)
            if fault := self.faults.pop(title, None):
                raise fault
            return {"agree": True}

        return run


@pytest.fixture
def fake_steps(monkeypatch: pytest.MonkeyPatch, ready: Scripted) -> FakeSteps:
    steps = FakeSteps()
    monkeypatch.setattr(cloud, "STEPS", steps.steps)
    return steps
