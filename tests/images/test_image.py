"""Both images, built for real and run as they are meant to be: `make image-test`.

Without a Docker engine, by buildah and podman, on a stand-in for the base image (`stand_in.sh`).
The ROCm image is built with the CPU's torch in the place of its own. Each container runs as its
own user, read-only, without capabilities and without network; what talks to it enters its network
namespace, where there is nothing but loopback.
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
STAND_INS = [
    *("--build-arg", f"BASE={BASE}"),
    *("--build-arg", "TORCH=cpu"),
    *("--build-arg", "TORCH_INDEX=https://pypi.org/simple"),
]
SLIM = 130  # MB, of the published base
TORCH_AND_ITS_OWN = re.compile("torch|functorch|nvidia|triton|sympy|mpmath|networkx")
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
    """This machine's way to its packages, for the build alone: pip's files and what they name."""
    said = [
        subprocess.run(
            [sys.executable, "-m", "pip", "config", what], capture_output=True, text=True
        )
        for what in ("debug", "list")
    ]
    files = re.findall(r"(/\S+), exists: True", said[0].stdout)
    named = re.findall(r"(?:file://|['\s])(/[^\s']+)", said[1].stdout)
    paths = {path.removesuffix("/simple") for path in (*files, *named) if Path(path).exists()}
    return [option for path in sorted(paths) for option in ("-v", f"{path}:{path}:ro")]


@pytest.fixture(scope="session", params=["Dockerfile", "Dockerfile.rocm"])
def image(request: pytest.FixtureRequest) -> str:
    name = "localhost/bge-serverless:" + {"Dockerfile": "cuda"}.get(request.param, "rocm")
    command = ["buildah", "bud", "--isolation", "chroot", "--format", "docker", "--pull-never"]
    command += [*pip_mounts(), *STAND_INS, "--build-arg", "MODELS=miniature", "--layers"]
    subprocess.run([*command, "-t", name, "-f", request.param, "."], cwd=ROOT, check=True)
    return name


@contextmanager
def container(image: str, *arguments: str, **env: str) -> Iterator[tuple[str, str]]:
    """Its id and the process that is its first."""
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


def inside(pid: str, code: str, *arguments: str) -> str:
    """What a Python of this machine prints in the container's network."""
    command = ["nsenter", "-t", pid, "-n", sys.executable, "-c", code, *arguments]
    ran = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=180)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def stopped(name: str, seconds: int) -> str:
    """Its exit code after SIGTERM."""
    podman("stop", "-t", str(seconds), name)
    return podman("inspect", "-f", "{{.State.ExitCode}}", name).strip()


def test_it_answers_a_payload_and_exits(image: str) -> None:
    ran = subprocess.run([*RUN, image, "test", PAYLOAD], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "'index': 1, 'relevance_score': 0.99" in ran.stdout + ran.stderr


def test_the_http_server_answers_the_client_and_stops(image: str) -> None:
    with container(image, BGE_API_KEY=KEY) as (name, pid):
        assert inside(pid, TO_SERVER, KEY) == "answered\n"
        assert podman("exec", name, "/app/worker/entrypoint.sh", "health") == ""
        assert podman("exec", name, "id", "-u").strip() == "10001"
        assert stopped(name, 40) == "0"


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
        assert inside(pid, TO_QUEUE) == "answered\n"
        assert stopped(name, 40) == "0"


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({}, "`BGE_API_KEY` is not set"),
        ({"BGE_DTYPE": "int8", "BGE_API_KEY": KEY}, "`BGE_DTYPE` must be one of"),
        ({"BGE_EMBED_MODEL": "/nowhere", "BGE_API_KEY": KEY}, "`/nowhere` is not a runtime folder"),
    ],
)
def test_a_wrong_setting_is_one_sentence(image: str, env: dict[str, str], sentence: str) -> None:
    options = [option for name, value in env.items() for option in ("-e", f"{name}={value}")]
    ran = subprocess.run([*RUN, *options, image], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    assert sentence in ran.stderr
    assert "Traceback" not in ran.stderr


def test_without_torch_and_weights_it_is_small(
    image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Uncompressed, in the place of the stand-in the base as published; the list is printed."""
    with mounted(BASE) as folder:
        base = megabytes(folder)
    with mounted(image) as folder:
        site = folder / "opt/venv/lib/python3.11/site-packages"
        sizes = {path.name: megabytes(path) for path in site.iterdir() if path.is_dir()}
        whole, models = megabytes(folder), megabytes(folder / "models")
    torch = sum(size for name, size in sizes.items() if TORCH_AND_ITS_OWN.match(name))
    ours = whole - base - torch - models
    with capsys.disabled():
        print(f"\n{image}: {whole} MB: base {base} (published {SLIM}), torch {torch}, ", end="")
        print(f"models {models}, the rest {ours}")
        for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:16]:
            print(f"  {size:5} MB  {name}")
        for layer in json.loads(podman("history", "--format", "json", image)):
            if layer["size"] > 10**6:
                print(f"  {layer['size'] // 10**6:5} MB  layer {layer['CreatedBy'][:70]}")
    assert SLIM + ours < 450


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
