"""The files of RunPod's Hub have the fields of its publishing guide (docs.runpod.io, 2026-08)."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from typing import Any

import pytest

from bge_builder.deploy.settings import read_settings
from bge_worker.http.server import check_exposed
from bge_worker.serving.payload import read_payload
from bge_worker.settings import Settings
from conftest import ROOT

FOLDER = ROOT / ".runpod"
HUB, TESTS = (json.loads((FOLDER / f"{name}.json").read_bytes()) for name in ("hub", "tests"))
CONFIG = HUB["config"]
INPUTS = {item["key"]: item["input"] for item in CONFIG["env"] if "input" in item}

# Field: required. Of inputs, by their type.
Fields = dict[str, bool]
METADATA: Fields = dict.fromkeys(("title", "description", "type", "category", "config"), True)
GPU_CONFIG: Fields = {
    **dict.fromkeys(("runsOn", "containerDiskInGb", "gpuCount", "gpuIds"), True),
    **dict.fromkeys(("endpointType", "allowedCudaVersions", "env", "presets"), False),
}
INPUT: Fields = {"name": True, "type": True, "description": True, "default": True}
INPUT_OPTIONS: dict[str, Fields] = {
    "string": {"options": False},
    "number": {"min": False, "max": False},
    "boolean": {"trueValue": True, "falseValue": True},
}
TEST_CONFIG: Fields = {
    **dict.fromkeys(("gpuTypeId", "gpuCount"), True),
    **dict.fromkeys(("env", "allowedCudaVersions"), False),
}


def check_fields(value: dict[str, Any], fields: Fields) -> None:
    assert {name for name, is_required in fields.items() if is_required} <= value.keys()
    assert value.keys() <= fields.keys()


def environment(values: dict[str, Any]) -> dict[str, str]:
    """Return the variables that the Hub sets for these values of inputs."""
    static = {item["key"]: item["value"] for item in CONFIG["env"] if "value" in item}
    defaults = {key: options["default"] for key, options in INPUTS.items()}
    return static | {key: as_text(key, value) for key, value in (defaults | values).items()}


def as_text(key: str, value: Any) -> str:
    if INPUTS[key]["type"] != "boolean":
        return str(value)
    return str(INPUTS[key]["trueValue" if value else "falseValue"])


def test_the_listing_has_the_guide_s_fields() -> None:
    check_fields(HUB, METADATA | {"iconUrl": False})
    check_fields(CONFIG, GPU_CONFIG)
    assert (HUB["type"], HUB["category"]) == ("serverless", "embedding")
    assert (CONFIG["runsOn"], CONFIG["endpointType"]) == ("GPU", "LB")
    for item in CONFIG["env"]:
        assert item.keys() in ({"key", "value"}, {"key", "input"})
    for options in INPUTS.values():
        check_fields(options, INPUT | {"advanced": False} | INPUT_OPTIONS[options["type"]])
    for preset in CONFIG["presets"]:
        check_fields(preset, {"name": True, "defaults": True})
        assert preset["defaults"].keys() <= INPUTS.keys()


def test_the_listing_asks_for_the_cards_that_a_deployment_asks_for() -> None:
    """The Hub has no minimum version: the list has each one from the minimum on, newest first."""
    gpu = read_settings("lb")["gpu"]
    assert CONFIG["gpuIds"].split(",") == gpu["pools"]
    assert CONFIG["gpuCount"] == TESTS["config"]["gpuCount"] == gpu["count"]
    versions = CONFIG["allowedCudaVersions"]
    assert versions == TESTS["config"]["allowedCudaVersions"] == sorted(versions, reverse=True)
    assert versions[-1] == gpu["minCudaVersion"]


@pytest.mark.parametrize("preset", CONFIG["presets"], ids=lambda preset: preset["name"])
def test_a_preset_starts_what_its_name_says(preset: dict[str, Any]) -> None:
    env = environment(preset["defaults"])
    settings = Settings.from_env(env)
    is_queue = preset["name"].startswith("Queue")
    assert env["BGE_MODE"] == ("queue" if is_queue else "serve")
    assert settings.insecure != is_queue
    if not is_queue:
        check_exposed("0.0.0.0", settings)


def test_without_a_preset_no_server_is_open_to_everyone() -> None:
    """A listing of this type may be deployed as a Pod, in front of which nobody checks callers."""
    settings = Settings.from_env(environment({}))
    assert (settings.insecure, settings.api_key) == (False, None)


def test_the_icon_is_the_drawn_one() -> None:
    kind, _, data = HUB["iconUrl"].partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data) == (FOLDER / "icon.svg").read_bytes()


def test_the_tests_are_valid_payloads() -> None:
    check_fields(TESTS["config"], TEST_CONFIG)
    Settings.from_env({item["key"]: item["value"] for item in TESTS["config"]["env"]})
    for test in TESTS["tests"]:
        check_fields(test, {"name": True, "input": True, "timeout": False})
        read_payload(test["input"])


def test_the_handler_is_the_worker_s() -> None:
    command = [sys.executable, str(FOLDER / "handler.py"), "--test_input", "{"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1
    assert result.stderr.startswith("bge-serverless cannot start: `--test_input` is not JSON")
