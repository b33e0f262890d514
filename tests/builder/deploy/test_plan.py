"""`make deploy` against a fake RunPod API: what is created, changed, shown and refused."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bge_builder.__main__ import main
from bge_builder.deploy.settings import SETTINGS, merged, read_settings
from bge_worker.http.server import check_exposed, read_ports
from bge_worker.settings import Settings
from fakes.runpod_api import KEY, Answer, RunPodApi

IMAGE = "registry.example/bge-serverless:0.1.0"
CANARY = "rpa_CANARY0123456789"


def deploy(*arguments: str, image: str = IMAGE) -> int:
    return main(["deploy", image, "--wait", "0", *arguments])


def test_an_empty_account_gets_an_endpoint(
    api: RunPodApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy() == 0
    ((endpoint_id, sent),) = api.writes
    document = tomllib.loads(SETTINGS.read_text("utf-8"))
    assert sent == merged(document["endpoint"], document["queue"]) | {"image": IMAGE}
    assert (sent["type"], sent["flashboot"], sent["workers"]["min"]) == ("QUEUE", "FLASHBOOT", 0)
    output = capsys.readouterr().out
    assert output.startswith("+ endpoint bge-serverless\n    disk = 20\n")
    assert '    gpu.pools = ["AMPERE_24", "ADA_24"]\n' in output
    assert f"  runSync: https://api.runpod.ai/v2/{endpoint_id}/runsync\n" in output
    assert output.endswith(f"endpoint: https://api.runpod.ai/v2/{endpoint_id}\n")


def test_both_types_live_beside_each_other(
    api: RunPodApi, deployed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy("--type", "lb") == 0
    ((endpoint_id, sent),) = api.writes
    assert (sent["name"], sent["type"]) == ("bge-serverless-lb", "LOAD_BALANCER")
    assert sent["scaling"] == {"type": "REQUEST_COUNT", "requestCount": 32}
    assert f"{sent['env']['PORT']}/http" in sent["ports"]
    assert capsys.readouterr().out.endswith(f"endpoint: https://{endpoint_id}.api.runpod.ai\n")
    assert deploy("--type", "lb") == deploy() == 0
    assert len(api.writes) == 1


def test_the_image_of_a_load_balancer_starts_the_server_without_a_key() -> None:
    settings = read_settings("lb")
    assert settings["args"] == "serve"  # of entrypoint.sh
    worker = Settings.from_env(settings["env"])
    check_exposed("0.0.0.0", worker)
    assert read_ports(None, settings["env"]) == [8000]


def test_a_second_run_changes_nothing(
    api: RunPodApi, deployed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    deployed["name"] += " -fb"  # as in version 1 of the API
    assert deploy() == 0
    assert api.writes == []
    assert capsys.readouterr().out.startswith(f"= endpoint bge-serverless ({deployed['id']})\n")


@pytest.mark.parametrize(
    ("path", "value", "sent"),
    [
        ("timeout", 300_000, {"timeout": 60_000}),
        ("workers.max", 9, {"workers": {"min": 0, "max": 3, "idleTimeout": 5}}),
        (
            "scaling",
            {"type": "REQUEST_COUNT", "requestCount": 4},
            {"scaling": {"type": "QUEUE_DELAY", "queueDelay": 4}},
        ),
        ("gpu.pools", ["ADA_24", "AMPERE_24"], {"gpu": {}}),
        ("gpu.excludedTypes", ["NVIDIA L4"], {"gpu": {}}),
        ("gpu.minCudaVersion", None, {"gpu": {}}),
        ("env", {"RUNPOD_LOG_LEVEL": "INFO", "ANOTHER": "kept"}, {}),
        (
            "env",
            {"RUNPOD_LOG_LEVEL": "DEBUG", "ANOTHER": "kept"},
            {"env": {"RUNPOD_LOG_LEVEL": "INFO", "ANOTHER": "kept"}},
        ),
    ],
)
def test_only_what_differs_is_sent(
    path: str, value: Any, sent: dict[str, Any], api: RunPodApi, deployed: dict[str, Any]
) -> None:
    table, _, field = path.rpartition(".")
    (deployed[table] if table else deployed)[field] = value
    if "gpu" in sent:  # the full table: `pools` alone would clear `excludedTypes`
        sent = {"gpu": tomllib.loads(SETTINGS.read_text("utf-8"))["endpoint"]["gpu"]}
    assert deploy() == 0
    assert [body for _, body in api.writes] == ([sent] if sent else [])
    assert deploy() == 0
    assert len(api.writes) == bool(sent)


def test_an_endpoint_with_odd_fields_is_updated(api: RunPodApi, deployed: dict[str, Any]) -> None:
    deployed |= {"env": 7, "workers": None, "gpu": {"pools": "ADA_24", "excludedTypes": 7}}
    api.answers[f"PATCH /serverless/{deployed['id']}"] = Answer(200, json.dumps(deployed))
    assert deploy() == 0


def test_the_minimum_cuda_version_replaces_a_set_of_versions(
    api: RunPodApi, deployed: dict[str, Any]
) -> None:
    deployed["gpu"] |= {"allowedCudaVersions": ["12.8"], "minCudaVersion": None}
    assert deploy() == 0
    assert (endpoint := api.endpoints[deployed["id"]])["gpu"]["minCudaVersion"] == "13.0"
    assert endpoint["gpu"]["allowedCudaVersions"] == []


def test_a_dry_run_shows_the_changes_without_making_them(
    api: RunPodApi, deployed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    deployed["workers"]["max"] = 9
    deployed["env"]["SOMEBODY_S_TOKEN"] = CANARY
    assert deploy("--dry-run", image=f"{IMAGE}-2") == 0
    assert api.writes == []
    assert capsys.readouterr().out == (
        f"~ endpoint bge-serverless ({deployed['id']})\n"
        "    workers.max: 9 -> 3\n"
        f'    image: "{IMAGE}" -> "{IMAGE}-2"\n'
        "nothing was changed\n"
    )


def test_a_dry_run_without_a_key_needs_no_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    monkeypatch.setattr("bge_builder.deploy.api.API", "http://127.0.0.1:9/v2")
    assert deploy("--dry-run") == 0
    output = capsys.readouterr().out
    assert output.startswith("+ endpoint bge-serverless\n")
    assert "`RUNPOD_API_KEY` is not set; nothing was changed" in output


def test_an_endpoint_of_another_name_can_be_updated(
    api: RunPodApi, deployed: dict[str, Any]
) -> None:
    deployed["name"] = "older"
    assert deploy("--endpoint", deployed["id"]) == 0
    assert api.writes == [(deployed["id"], {"name": "bge-serverless"})]


@pytest.mark.parametrize("name_or_id", ["reg_1", "private"])
def test_a_registry_credential_is_found_by_name_or_id(name_or_id: str, api: RunPodApi) -> None:
    api.registries = [{"id": "reg_1", "name": "private"}, {"id": "reg_2", "name": "other"}]
    assert deploy("--registry", name_or_id) == 0
    assert api.writes[0][1]["registry"] == "reg_1"


def test_an_unknown_registry_credential_is_refused(
    api: RunPodApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.registries = [{"id": i, "name": "twice"} for i in ("reg_1", "reg_2")]
    assert deploy("--registry", "twice") == 1
    assert "Given: twice; known: twice (reg_1), twice (reg_2)" in capsys.readouterr().err
    assert api.writes == []


# ------------------------------------------------------------------------- what goes wrong

HTML = Answer(502, "<html>bad gateway</html>", "text/html")
LIST, CREATE = "GET /serverless", "POST /serverless"
PROBLEM = {
    "title": "Unprocessable Entity",
    "status": 422,
    "detail": "Request validation failed.",
    "errors": ["$.gpu.pools: too short", "$: no"],
}
FAULTS: dict[str, tuple[str, Answer, str]] = {
    "gone": (LIST, Answer(410, '{"title": "Gone", "detail": "retired"}'), "HTTP 410 Gone: retired"),
    "html": (LIST, HTML, "HTTP 502, not a JSON object (text/html)"),
    "html that succeeds": (LIST, HTML._replace(status=200), "HTTP 200, not a JSON object"),
    "redirect": (LIST, Answer(302, location="http://127.0.0.1:9/"), "HTTP 302, a redirect, which"),
    "empty": (LIST, Answer(200), "GET /serverless: HTTP 200 with an empty body"),
    "deep": (LIST, Answer(200, "[" * 100_000), "HTTP 200, not a JSON object"),
    "array": (LIST, Answer(200, "[]"), "HTTP 200, not a JSON object"),
    "no list": (LIST, Answer(200, "{}"), "returned no list `endpoints`"),
    "no id": (LIST, Answer(200, '{"endpoints": [{"name": "x"}]}'), "an item without `id`"),
    "no object": (LIST, Answer(200, '{"endpoints": [7]}'), "an item without `id`"),
    "page": (LIST, Answer(200, '{"endpoints": [], "nextCursor": "x"}'), "returned `nextCursor`"),
    "created without id": (CREATE, Answer(201, "{}"), "an item without `id`"),
    "refused": (
        CREATE,
        Answer(422, json.dumps(PROBLEM), "application/problem+json"),
        "POST /serverless: HTTP 422 Unprocessable Entity: Request validation failed.: "
        "$.gpu.pools: too short; $: no\n",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_invalid_response_is_a_one_line_error(
    fault: str, api: RunPodApi, capsys: pytest.CaptureFixture[str]
) -> None:
    path, answer, message = FAULTS[fault]
    api.answers[path] = answer
    assert deploy() == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert api.writes == []


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("key", "RunPod does not accept `RUNPOD_API_KEY`"),
        ("no key", "`RUNPOD_API_KEY` is not set"),
        ("two", "several endpoints have the name bge-serverless: e1, e2"),
        ("id", "GET /serverless/no%2Fwhere: HTTP 404 Not Found: endpoint not found"),
        ("down", "no response from RunPod"),
        ("proxy", "no connection can be made: "),
        ("load balancer", "endpoint e1 has `type` LOAD_BALANCER and GPUs, which no update changes"),
        ("CPU", "endpoint e1 has `type` QUEUE and CPUs, which no update changes"),
    ],
)
def test_a_failure_is_a_one_line_error(
    failure: str,
    message: str,
    api: RunPodApi,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if failure in ("key", "no key"):
        monkeypatch.setenv("RUNPOD_API_KEY", "another" if failure == "key" else "")
    if failure == "two":
        api.endpoints = {n: {"id": n, "name": "bge-serverless"} for n in ("e1", "e2")}
    if failure in ("load balancer", "CPU"):
        kind = {"type": "LOAD_BALANCER"} if failure == "load balancer" else {"cpu": [{}]}
        api.endpoints = {"e1": {"id": "e1", "name": "bge-serverless", **kind}}
    if failure == "down":
        monkeypatch.setattr("bge_builder.deploy.api.API", "http://127.0.0.1:9/v2")
    if failure == "proxy":
        monkeypatch.setenv("HTTP_PROXY", "gopher://user:pass@127.0.0.1")
    assert deploy(*(("--endpoint", "no/where") if failure == "id" else ())) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "pass" not in error
    assert error.count("\n") == 1
    assert api.writes == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "a = 1",
        "queue = {name = inf}",
        "[queue]\nname = 7",
        "queue = 7",
        "[queue]\nname = 'x'\nenv = 7",
        "[queue]\nname = 'x'\ntype = 'LOAD_BALANCER'",
        "[queue]\nname = 'x'\ntype = 'QUEUE'\nenv = 7",
        f"a = {'9' * 4400}",
    ],
)
def test_invalid_settings_are_a_one_line_error(
    text: str,
    api: RunPodApi,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "deploy.toml").write_text(text)
    monkeypatch.setattr("bge_builder.deploy.settings.SETTINGS", tmp_path / "deploy.toml")
    assert deploy() == 1
    assert capsys.readouterr().err.startswith("error: `deploy.toml` ")


def echo(monkeypatch: pytest.MonkeyPatch, api: RunPodApi) -> None:
    """RunPod quotes the key in its response."""
    api.answers[LIST] = Answer(400, json.dumps({"title": "Bad", "detail": f"what is {CANARY}?"}))


def wrong_header(monkeypatch: pytest.MonkeyPatch, api: RunPodApi) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", f"{CANARY}\n{CANARY}")


def wrong_letter(monkeypatch: pytest.MonkeyPatch, api: RunPodApi) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", f"{CANARY}é")


@pytest.mark.parametrize("fault", [echo, wrong_header, wrong_letter])
@pytest.mark.parametrize("white_space", ["", "\n", " \r\n"])
def test_the_key_is_never_printed(
    fault: Callable[[pytest.MonkeyPatch, RunPodApi], None],
    white_space: str,
    api: RunPodApi,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", CANARY + white_space)
    fault(monkeypatch, api)
    assert deploy() == 1
    output, error = capsys.readouterr()
    assert error.startswith("error: ")
    assert CANARY not in output + error


@pytest.mark.parametrize("white_space", ["\n", " ", "\r\n"])
def test_white_space_around_the_key_is_stripped(
    white_space: str, api: RunPodApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", KEY + white_space)
    assert deploy() == 0
