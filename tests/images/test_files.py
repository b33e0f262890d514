"""What images are built from, held together: Dockerfiles, locks, settings, the entry."""

from __future__ import annotations

import json
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from bge_worker.serving.payload import read_payload
from bge_worker.settings import Settings
from conftest import ROOT

SET_BY_THE_PLATFORM = {"PORT", "PORT_HEALTH", "RUNPOD_LOG_LEVEL"}


def code(name: str) -> list[str]:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_the_two_dockerfiles_differ_in_base_and_torch_alone() -> None:
    cuda, rocm = code("Dockerfile"), code("Dockerfile.rocm")
    assert len(cuda) == len(rocm)
    differing = [one for one, other in zip(cuda, rocm, strict=True) if one != other]
    assert differing
    assert all(re.match(r"ARG (BASE|TORCH|TORCH_INDEX)=", line) for line in differing)


def test_compose_demands_no_key_and_leaves_the_refusal_to_the_server() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    for service in compose["services"].values():
        environment = service["environment"]
        assert environment["BGE_API_KEY"] == "${BGE_API_KEY:-}"
        assert environment["BGE_INSECURE"] == "${BGE_INSECURE:-0}"
        assert service["ports"] == ["${BIND:-127.0.0.1}:${HOST_PORT:-8000}:8000"]


@pytest.mark.parametrize(
    ("requirements", "lock"),
    [
        ("worker/requirements.txt", "worker/requirements.lock"),
        ("builder/requirements.txt", "builder/requirements.lock"),
    ],
)
def test_a_lock_pins_with_hashes_what_is_required(requirements: str, lock: str) -> None:
    """`make lock` after a change. torch has locks of its own."""
    required = {line for line in code(requirements) if not line.startswith("torch==")}
    locked = entries(lock)
    assert required <= {entry.split()[0] for entry in locked}
    assert all("--hash=sha256:" in entry for entry in locked)
    assert not any(entry.startswith("torch==") for entry in locked)


@pytest.mark.parametrize(
    ("build", "version"), [("cuda", ""), ("cpu", "+cpu"), ("rocm", "+rocm7.2")]
)
def test_each_build_of_torch_is_the_worker_s(build: str, version: str) -> None:
    """Its hashes are missing for ROCm (see there); pip then asks for none."""
    (pinned,) = [line for line in code("worker/requirements.txt") if line.startswith("torch==")]
    locked = entries(f"builder/torch-{build}.lock")
    assert f"{pinned}{version}" in {entry.split()[0] for entry in locked}
    assert build == "rocm" or all("--hash=sha256:" in entry for entry in locked)


def entries(lock: str) -> list[str]:
    """A package each, with its hashes."""
    return re.split(r"\n(?=\S)", "\n".join(code(lock)))


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.rocm"])
def test_what_a_dockerfile_copies_reaches_the_build(name: str) -> None:
    """.dockerignore leaves all out but what it names; a base is named by its digest."""
    kept = {line[1:] for line in code(".dockerignore") if line.startswith("!")}
    copies = [line.split()[1:-1] for line in code(name) if line.startswith("COPY ")]
    sources = {source for copy in copies if "--from=" not in copy[0] for source in copy}
    assert {"worker", "client", "builder"} <= sources
    for source in sources:
        assert any(source == path or source.startswith(f"{path}/") for path in kept), source
    assert any(re.match(r"ARG BASE=\S+@sha256:[0-9a-f]{64}$", line) for line in code(name))


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").iterdir()))
def test_an_action_is_pinned_by_its_commit(path: Path) -> None:
    used = re.findall(r"^\s*(?:- )?uses: (\S+)(.*)$", path.read_text("utf-8"), re.MULTILINE)
    others = [(action, comment) for action, comment in used if not action.startswith("./")]
    for action, comment in others:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


def test_the_example_has_every_variable_with_a_word_of_why() -> None:
    lines = (ROOT / ".env.example").read_text("utf-8").splitlines()
    named = {match[1] for line in lines if (match := re.match(r"#?([A-Z_]+)=", line))}
    source = (ROOT / "worker" / "bge_worker" / "settings.py").read_text("utf-8")
    assert set(re.findall(r'"(BGE_[A-Z_]+)"', source)) | SET_BY_THE_PLATFORM <= named
    for before, line in pairwise(lines):
        if re.match(r"#?BGE_", line):
            assert before.startswith(("# ", "#BGE_", "BGE_"))


def test_the_example_s_commented_values_are_the_defaults() -> None:
    text = (ROOT / ".env.example").read_text("utf-8")
    found = dict(re.findall(r"^#(BGE_[A-Z_]+)=(\S+)$", text, re.MULTILINE))
    del found["BGE_MAX_BATCH_TOKENS"]  # of a GPU; None means: by the device
    assert Settings.from_env(found) == Settings()


def test_the_hub_s_files_speak_of_what_the_worker_knows() -> None:
    """Fields as in docs.runpod.io, "Runpod Hub publishing guide"."""
    hub, tests = (
        json.loads((ROOT / ".runpod" / f"{n}.json").read_text()) for n in ("hub", "tests")
    )
    assert hub.keys() == {"title", "description", "type", "category", "config"}
    config = hub["config"]
    assert (config["runsOn"], hub["type"]) == ("GPU", "serverless")
    Settings.from_env({one["key"]: str(one["input"]["default"]) for one in config["env"]})
    assert config["allowedCudaVersions"] == tests["config"]["allowedCudaVersions"]
    for test in tests["tests"]:
        assert test.keys() == {"name", "input", "timeout"}
        read_payload(test["input"])


# ------------------------------------------------------------------------------ the entry


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A folder whose `python` says what it was asked to run."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    fake.chmod(0o755)
    return tmp_path


def entry(python: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "worker" / "entrypoint.sh"), *arguments],
        env={"PATH": f"{python}:/usr/bin:/bin"} | env,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "env", "runs"),
    [
        ((), {}, "worker/server.py|--host|0.0.0.0|"),
        ((), {"RUNPOD_WEBHOOK_GET_JOB": "https://x"}, "worker/handler.py|"),
        (("queue",), {}, "worker/handler.py|"),
        (("serve", "--port", "80"), {}, "worker/server.py|--host|0.0.0.0|--port|80|"),
        (("test",), {}, "worker/handler.py|"),
        (("test", '{"input": {}}'), {}, 'worker/handler.py|--test_input|{"input": {}}|'),
        (("health",), {"RUNPOD_WEBHOOK_GET_JOB": "https://x"}, ""),
    ],
)
def test_the_entry_runs_what_the_place_or_the_argument_says(
    arguments: tuple[str, ...], env: dict[str, str], runs: str, python: Path
) -> None:
    ran = entry(python, *arguments, **env)
    assert (ran.returncode, ran.stdout) == (0, runs)


def test_a_wrong_argument_is_told_what_there_is(python: Path) -> None:
    ran = entry(python, "server")
    assert ran.returncode == 64
    assert ran.stderr.startswith("usage: [queue | serve [options] | test [payload] | health]")
