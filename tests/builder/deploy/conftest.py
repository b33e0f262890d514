from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bge_builder.__main__ import main
from fakes.runpod_api import KEY, RunPodApi
from fakes.scripted import Scripted


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunPodApi]:
    with RunPodApi() as api:
        monkeypatch.setattr("bge_builder.deploy.api.API", api.url)
        monkeypatch.setenv("RUNPOD_API_KEY", KEY)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield api


@pytest.fixture
def deployed(api: RunPodApi, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The endpoint of a first run; its writes and output are cleared."""
    assert main(["deploy", "registry.example/bge-serverless:0.1.0", "--wait", "0"]) == 0
    api.writes.clear()
    capsys.readouterr()
    (endpoint,) = api.endpoints.values()
    return endpoint


@pytest.fixture
def endpoint(api: RunPodApi, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    """What answers at the URLs of all endpoints. Nothing pauses for long."""
    monkeypatch.setattr("bge_builder.deploy.wait.POLL_SECONDS", 0.01)
    monkeypatch.setattr("bge_builder.deploy.wait.UNHEALTHY_SECONDS", 0.05)
    monkeypatch.setattr("bge_builder.deploy.api.LOG_SILENCE_SECONDS", 0.2)
    with Scripted() as endpoint:
        urls = dict.fromkeys(("QUEUE", "LOAD_BALANCER"), endpoint.url)
        monkeypatch.setattr("bge_builder.deploy.probes.URLS", urls)
        yield endpoint
