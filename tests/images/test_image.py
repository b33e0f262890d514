"""Build both images and run them: `make image-test`.

Uses buildah and podman instead of a Docker engine, and a substitute for the base image
(`stand_in.sh`). The ROCm image gets the CPU build of torch. Each container runs as its own user,
read-only, without capabilities and without network; clients enter its network namespace, which has
only loopback.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import ROOT

RUN = [
    *("podman", "--runtime", "runc", "--cgroup-manager=cgroupfs", "run", "--rm"),
    *("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000", "--no-healthcheck"),
    *("--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
]
BASE = "docker.io/library/python:3.11-slim-bookworm"
BUILD_ARGS = [
    *("--build-arg", f"BASE={BASE}"),
    *("--build-arg", "TORCH=cpu"),
    *("--build-arg", "TORCH_INDEX=https://pypi.org/simple"),
]
PUBLISHED_BASE = 130  # MB, of the published base
TORCH_PACKAGES = re.compile("torch|functorch|nvidia|triton|sympy|mpmath|networkx")
KEY = "a-key-of-the-test"
PAYLOAD = '{"input": {"query": "море", "documents": ["о суше", "о море"]}}'
TO_SERVER = """
import sys
from bge_client import Client
with Client("http://127.0.0.1:8000", sys.argv[1], timeout=60) as client:
    assert client.embed(["море", "суша"], sparse=True, colbert=True).dense.shape == (2, 512)
    assert client.rerank("море", ["о суше", "о море"])[0].index == 1
    print("answered")
"""
TO_QUEUE = """
import sys, time
from fakes.runpod_server import JobServer
with JobServer(port=8900) as server:
    job = server.submit({"texts": ["море"], "return_sparse": True})
    assert len(server.result(job, 60)["output"]["embeddings"][0]) == 512
    assert server.violations == []
    print("answered")
"""

pytestmark = pytest.mark.skipif("not config.getoption('--images')", reason="make image-test")


def pip_mounts() -> list[str]:
    """Return mounts of pip's configuration and the paths in it, for the build only."""
    outputs = [
        subprocess.run(
            [sys.executable, "-m", "pip", "config", command], capture_output=True, text=True
        )
        for command in ("debug", "list")
    ]
    files = re.findall(r"(/\S+), exists: True", outputs[0].stdout)
    configured = re.findall(r"(?:file://|['\s])(/[^\s']+)", outputs[1].stdout)
    paths = {path.removesuffix("/simple") for path in (*files, *configured) if Path(path).exists()}
    return [option for path in sorted(paths) for option in ("-v", f"{path}:{path}:ro")]


@pytest.fixture(scope="session", params=["Dockerfile", "Dockerfile.rocm"])
def image(request: pytest.FixtureRequest) -> str:
    name = "localhost/bge-serverless:" + {"Dockerfile": "cuda"}.get(request.param, "rocm")
    command = ["buildah", "bud", "--isolation", "chroot", "--format", "docker", "--pull-never"]
    command += [*pip_mounts(), *BUILD_ARGS, "--build-arg", "MODELS=miniature", "--layers"]
    subprocess.run([*command, "-t", name, "-f", request.param, "."], cwd=ROOT, check=True)
    return name


@contextmanager
def container(image: str, *arguments: str, **env: str) -> Iterator[tuple[str, str]]:
    """Run a container and yield its id and the pid of its first process."""
    options = [option for name, value in env.items() for option in ("-e", f"{name}={value}")]
    command = [*RUN, "--detach", *options, image, *arguments]
    command.remove("--rm")
    name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    try:
        pid = podman("inspect", "-f", "{{.State.Pid}}", name).strip()
        yield name, pid
    finally:
        podman("rm", "-f", name)


def podman(*arguments: str) -> str:
    command = ["podman", "--runtime", "runc", "--cgroup-manager=cgroupfs", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def run_in_network(pid: str, code: str, *arguments: str) -> str:
    """Run Python code in the container's network and return its output."""
    command = ["nsenter", "-t", pid, "-n", sys.executable, "-c", code, *arguments]
    result = subprocess.run(
        command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=180
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def stop(name: str, seconds: int) -> str:
    """Stop a container with SIGTERM and return its exit code."""
    podman("stop", "-t", str(seconds), name)
    return podman("inspect", "-f", "{{.State.ExitCode}}", name).strip()


def test_it_answers_a_payload_and_exits(image: str) -> None:
    result = subprocess.run([*RUN, image, "test", PAYLOAD], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "'index': 1, 'relevance_score': 0.99" in result.stdout + result.stderr


def test_the_http_server_answers_the_client_and_stops(image: str) -> None:
    with container(image, BGE_API_KEY=KEY) as (name, pid):
        assert run_in_network(pid, TO_SERVER, KEY) == "answered\n"
        assert podman("exec", name, "/app/worker/entrypoint.sh", "health") == ""
        assert podman("exec", name, "id", "-u").strip() == "10001"
        assert stop(name, 40) == "0"


def test_the_queue_worker_takes_jobs_and_stops(image: str) -> None:
    base = "http://127.0.0.1:8900/v2/fake"
    env = {
        "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
        "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=none",
        "RUNPOD_POD_ID": "worker-1",
        "RUNPOD_AI_API_KEY": "not-a-key",
        "RUNPOD_SKIP_GPU_CHECK": "true",
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
    }
    with container(image, **env) as (name, pid):
        assert run_in_network(pid, TO_QUEUE) == "answered\n"
        assert stop(name, 40) == "0"


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({}, "`BGE_API_KEY` is not set"),
        ({"BGE_DTYPE": "int4", "BGE_API_KEY": KEY}, "`BGE_DTYPE` must be one of"),
        ({"BGE_EMBED_MODEL": "/nowhere", "BGE_API_KEY": KEY}, "`/nowhere` is not a runtime folder"),
    ],
)
def test_a_wrong_setting_is_a_one_line_error(image: str, env: dict[str, str], message: str) -> None:
    options = [option for name, value in env.items() for option in ("-e", f"{name}={value}")]
    result = subprocess.run([*RUN, *options, image], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_size_without_torch_and_weights_is_limited(
    image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Uncompressed, with the size of the published base instead of the substitute's."""
    with mounted(BASE) as folder:
        base = megabytes(folder)
    with mounted(image) as folder:
        site = folder / "opt/venv/lib/python3.11/site-packages"
        sizes = {path.name: megabytes(path) for path in site.iterdir() if path.is_dir()}
        total, models = megabytes(folder), megabytes(folder / "models")
    torch = sum(size for name, size in sizes.items() if TORCH_PACKAGES.match(name))
    remainder = total - base - torch - models
    with capsys.disabled():
        print(
            f"\n{image}: {total} MB: base {base} (published {PUBLISHED_BASE}), torch {torch}, ",
            end="",
        )
        print(f"models {models}, the rest {remainder}")
        for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:16]:
            print(f"  {size:5} MB  {name}")
        for layer in json.loads(podman("history", "--format", "json", image)):
            if layer["size"] > 10**6:
                print(f"  {layer['size'] // 10**6:5} MB  layer {layer['CreatedBy'][:70]}")
    assert PUBLISHED_BASE + remainder < 450


@contextmanager
def mounted(image: str) -> Iterator[Path]:
    folder = Path(podman("image", "mount", image).strip())
    try:
        yield folder
    finally:
        podman("image", "unmount", image)


def megabytes(folder: Path) -> int:
    du = subprocess.run(["du", "-sm", folder], capture_output=True, text=True, check=True)
    return int(du.stdout.split()[0])
