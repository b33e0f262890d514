"""`make deploy` against a stand-in of RunPod's API: what is created, changed, shown and refused."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

import pytest

from builder.__main__ import main
from builder.deploy import SETTINGS
from fakes.runpod_api import KEY, RunPodApi
from fakes.scripted import Scripted, completed, failed

IMAGE = "registry.example/bge-serverless:0.1.0"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunPodApi]:
    with RunPodApi() as api:
        monkeypatch.setattr("builder.deploy.API", api.url)
        monkeypatch.setenv("RUNPOD_API_KEY", KEY)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield api


def deploy(*arguments: str) -> int:
    return main(["deploy", IMAGE, "--no-smoke", *arguments])


def test_an_empty_account_gets_template_and_endpoint(
    api: RunPodApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy() == 0
    (template,), (endpoint,) = (list(one.values()) for one in api.kept.values())
    assert template["imageName"] == IMAGE
    assert endpoint["templateId"] == template["id"]
    settings = tomllib.loads(SETTINGS.read_text("utf-8"))
    assert settings["endpoint"].items() <= endpoint.items()
    assert (endpoint["workersMin"], endpoint["workersMax"], endpoint["idleTimeout"]) == (0, 3, 5)
    shown = capsys.readouterr().out
    assert "+ template bge-serverless" in shown
    assert f"endpoint: https://api.runpod.ai/v2/{endpoint['id']}" in shown


def test_a_second_run_changes_nothing(api: RunPodApi, capsys: pytest.CaptureFixture[str]) -> None:
    deploy()
    api.writes.clear()
    for endpoint in api.kept["endpoints"].values():  # as RunPod gives them back
        endpoint["name"] += " -fb"
        endpoint["gpuTypeIds"] = endpoint["gpuTypeIds"][::-1]
    capsys.readouterr()
    assert deploy() == 0
    assert api.writes == []
    assert capsys.readouterr().out.startswith("= template bge-serverless")


def test_only_what_differs_is_sent(api: RunPodApi, capsys: pytest.CaptureFixture[str]) -> None:
    deploy()
    (endpoint,) = api.kept["endpoints"].values()
    endpoint["workersMax"] = 9
    api.writes.clear()
    assert main(["deploy", f"{IMAGE}-2", "--no-smoke"]) == 0
    sent = [(kind, body) for kind, _, body in api.writes]
    assert sent == [("templates", {"imageName": f"{IMAGE}-2"}), ("endpoints", {"workersMax": 3})]
    assert "workersMax: 9 -> 3" in capsys.readouterr().out


def test_a_dry_run_shows_and_sends_nothing(
    api: RunPodApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy("--dry-run") == 0
    assert api.writes == []
    shown = capsys.readouterr().out
    assert "+ endpoint bge-serverless" in shown
    assert shown.endswith("nothing was changed\n")


def test_an_endpoint_of_another_name_can_be_taken_over(api: RunPodApi) -> None:
    deploy()
    (endpoint,) = api.kept["endpoints"].values()
    endpoint["name"] = "older"
    assert deploy("--endpoint", endpoint["id"]) == 0
    assert [one["name"] for one in api.kept["endpoints"].values()] == ["bge-serverless"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        ("key", "RunPod does not accept `RUNPOD_API_KEY`"),
        ("no key", "`RUNPOD_API_KEY` is not set"),
        ("two", "several endpoints are called bge-serverless: e1, e2"),
        ("id", "there is no endpoint nowhere in this account"),
        ("down", "no answer from RunPod"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    spoil: str,
    sentence: str,
    api: RunPodApi,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if spoil in ("key", "no key"):
        monkeypatch.setenv("RUNPOD_API_KEY", "another" if spoil == "key" else "")
    if spoil == "two":
        api.kept["endpoints"] = {n: {"id": n, "name": "bge-serverless"} for n in ("e1", "e2")}
    if spoil == "down":
        monkeypatch.setattr("builder.deploy.API", "http://127.0.0.1:9/v1")
    assert deploy(*(("--endpoint", "nowhere") if spoil == "id" else ())) == 1
    assert sentence in capsys.readouterr().err
    assert api.writes == []


def test_a_first_request_is_sent_through_the_cold_start(
    api: RunPodApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Scripted() as endpoint:
        base = endpoint.url.removesuffix("/some-id")
        monkeypatch.setattr("builder.deploy.ENDPOINTS", base)
        deploy()
        (kept,) = api.kept["endpoints"].values()
        api.kept["endpoints"] = {"some-id": kept | {"id": "some-id"}}
        endpoint.on("POST /runsync", completed)
        assert main(["deploy", IMAGE]) == 0
        assert "it answers: m, fingerprint f" in capsys.readouterr().out
        endpoint.on("POST /runsync", failed("NotServedError: no model"))
        assert main(["deploy", IMAGE]) == 1
        assert "it does not answer: no model" in capsys.readouterr().err
