"""The files of the images agree: Dockerfiles, locks, settings, entry point."""

from __future__ import annotations

import re
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from bge_worker.settings import Settings
from conftest import ROOT

SET_BY_THE_PLATFORM = {"PORT", "PORT_HEALTH", "RUNPOD_LOG_LEVEL"}


def code(name: str) -> list[str]:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_the_dockerfiles_differ_only_in_base_and_torch() -> None:
    cuda, rocm = code("Dockerfile"), code("Dockerfile.rocm")
    assert len(cuda) == len(rocm)
    differing = [line for line, rocm_line in zip(cuda, rocm, strict=True) if line != rocm_line]
    assert differing
    assert all(re.match(r"ARG (BASE|TORCH|TORCH_INDEX)=", line) for line in differing)


def test_compose_passes_the_key_and_the_server_checks_it() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    for service in compose["services"].values():
        if "build" not in service:
            continue
        environment = service["environment"]
        assert environment["BGE_API_KEY"] == "${BGE_API_KEY:-}"
        assert environment["BGE_INSECURE"] == "${BGE_INSECURE:-0}"
        assert service["ports"] == ["${BIND:-127.0.0.1}:${HOST_PORT:-8000}:8000"]


def test_compose_mounts_files_that_exist() -> None:
    """Docker would create a folder in place of a missing one."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    volumes = [v for service in compose["services"].values() for v in service.get("volumes", ())]
    files = [volume.split(":")[0] for volume in volumes if volume.startswith("./")]
    assert files
    assert all((ROOT / file).is_file() for file in files)


@pytest.mark.parametrize(
    ("requirements", "lock"),
    [
        ("worker/requirements.txt", "worker/requirements.lock"),
        ("builder/requirements.txt", "builder/requirements.lock"),
    ],
)
def test_a_lock_pins_every_requirement_with_hashes(requirements: str, lock: str) -> None:
    """If this fails, run `make lock`. torch has locks of its own."""
    required = {line for line in code(requirements) if not line.startswith("torch==")}
    locked = entries(lock)
    assert required <= {run_entrypoint.split()[0] for run_entrypoint in locked}
    assert all("--hash=sha256:" in run_entrypoint for run_entrypoint in locked)
    assert not any(run_entrypoint.startswith("torch==") for run_entrypoint in locked)


@pytest.mark.parametrize(
    ("build", "version"), [("cuda", ""), ("cpu", "+cpu"), ("rocm", "+rocm7.2")]
)
def test_each_build_has_the_worker_s_version_of_torch(build: str, version: str) -> None:
    """The ROCm lock has no hashes yet, so pip requires none."""
    (pinned,) = [line for line in code("worker/requirements.txt") if line.startswith("torch==")]
    locked = entries(f"builder/torch-{build}.lock")
    assert f"{pinned}{version}" in {run_entrypoint.split()[0] for run_entrypoint in locked}
    assert build == "rocm" or all("--hash=sha256:" in run_entrypoint for run_entrypoint in locked)


def test_the_worker_s_dependencies_and_extras_are_its_requirements() -> None:
    project = tomllib.loads((ROOT / "worker" / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert {*project["dependencies"], *extras["http"], *extras["runpod"]} == {
        *code("worker/requirements.txt")
    }


def entries(lock: str) -> list[str]:
    """Return the entries of a lock: a package with its hashes."""
    return re.split(r"\n(?=\S)", "\n".join(code(lock)))


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.rocm"])
def test_the_build_context_includes_what_a_dockerfile_copies(name: str) -> None:
    """.dockerignore excludes all but what it names. The base is pinned by digest."""
    included = {line[1:] for line in code(".dockerignore") if line.startswith("!")}
    copies = [line.split()[1:-1] for line in code(name) if line.startswith("COPY ")]
    sources = {source for copy in copies if "--from=" not in copy[0] for source in copy}
    assert {"worker", "client", "builder"} <= sources
    for source in sources:
        assert any(source == path or source.startswith(f"{path}/") for path in included), source
    assert any(re.match(r"ARG BASE=\S+@sha256:[0-9a-f]{64}$", line) for line in code(name))


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").iterdir()))
def test_actions_are_pinned_by_commit(path: Path) -> None:
    used = re.findall(r"^\s*(?:- )?uses: (\S+)(.*)$", path.read_text("utf-8"), re.MULTILINE)
    actions = [(action, comment) for action, comment in used if not action.startswith("./")]
    for action, comment in actions:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


def test_the_example_documents_every_variable() -> None:
    lines = (ROOT / ".env.example").read_text("utf-8").splitlines()
    named = {match[1] for line in lines if (match := re.match(r"#?([A-Z_]+)=", line))}
    source = (ROOT / "worker" / "bge_worker" / "settings.py").read_text("utf-8")
    assert set(re.findall(r'"(BGE_[A-Z_]+)"', source)) | SET_BY_THE_PLATFORM <= named
    for before, line in pairwise(lines):
        if re.match(r"#?BGE_", line):
            assert before.startswith(("# ", "#BGE_", "BGE_"))


def test_the_example_s_commented_values_are_the_defaults() -> None:
    text = (ROOT / ".env.example").read_text("utf-8")
    defaults = dict(re.findall(r"^#(BGE_[A-Z_]+)=(\S+)$", text, re.MULTILINE))
    del defaults["BGE_MAX_BATCH_TOKENS"]  # of a GPU; None means: by the device
    assert Settings.from_env(defaults) == Settings()


# ------------------------------------------------------------------------------ the entry


@pytest.fixture
def python_folder(tmp_path: Path) -> Path:
    """A folder with a `python` that prints its arguments."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    fake.chmod(0o755)
    return tmp_path


def run_entrypoint(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "worker" / "entrypoint.sh"), *arguments],
        env={"PATH": f"{folder}:/usr/bin:/bin"} | env,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "env", "runs"),
    [
        ((), {}, "worker/server.py|--host|0.0.0.0|"),
        ((), {"RUNPOD_WEBHOOK_GET_JOB": "https://x"}, "worker/handler.py|"),
        ((), {"RUNPOD_WEBHOOK_GET_JOB": "https://x", "BGE_MODE": ""}, "worker/handler.py|"),
        (
            (),
            {"RUNPOD_WEBHOOK_GET_JOB": "x", "BGE_MODE": "serve"},
            "worker/server.py|--host|0.0.0.0|",
        ),
        (("queue",), {}, "worker/handler.py|"),
        (("serve", "--port", "80"), {}, "worker/server.py|--host|0.0.0.0|--port|80|"),
        (("test",), {}, "worker/handler.py|"),
        (("test", '{"input": {}}'), {}, 'worker/handler.py|--test_input|{"input": {}}|'),
        (("health",), {"RUNPOD_WEBHOOK_GET_JOB": "https://x"}, ""),
    ],
)
def test_the_entrypoint_chooses_by_argument_or_environment(
    arguments: tuple[str, ...], env: dict[str, str], runs: str, python_folder: Path
) -> None:
    result = run_entrypoint(python_folder, *arguments, **env)
    assert (result.returncode, result.stdout) == (0, runs)


def test_a_wrong_argument_prints_the_usage(python_folder: Path) -> None:
    result = run_entrypoint(python_folder, "server")
    assert result.returncode == 64
    assert result.stderr.startswith("usage: [queue | serve [options] | test [payload] | health]")
