"""The processes that are measured: our servers and workers, and a peer's server."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from fakes.runpod_server import JobServer
from fakes.server_process import ServerProcess, free_port
from fakes.worker_process import WorkerProcess
from workload import ROOT


@contextmanager
def running(command: Sequence[object], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a command, and kill it at the end of the block."""
    with subprocess.Popen([str(part) for part in command], **options) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def http_server(settings: dict[str, str]) -> Iterator[ServerProcess]:
    """Run our HTTP server and wait until it is ready."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(settings, Path(folder) / "log") as server,
    ):
        server.wait_for(200, timeout=300)
        yield server


@contextmanager
def queue_workers(settings: dict[str, str], count: int = 1) -> Iterator[JobServer]:
    """Run queue workers at a fake job server and wait until they are ready."""
    handler = ROOT / "worker" / "handler.py"
    with ExitStack() as stack:
        jobs = stack.enter_context(JobServer())
        workers = [WorkerProcess(handler, jobs, settings) for _ in range(count)]
        for worker in workers:
            stack.enter_context(worker)
        for worker in workers:
            worker.wait_ready(120)
        yield jobs


@dataclass(frozen=True)
class Target:
    """A server whose `route` takes bodies in OpenAI's format."""

    name: str
    url: str
    route: str
    model: str

    def body(self, texts: list[str]) -> dict[str, Any]:
        return {"model": self.model, "input": texts}


@contextmanager
def own_target(folder: Path) -> Iterator[Target]:
    """Run our HTTP server with the embedding model in `folder`."""
    settings = {"BGE_EMBED_MODEL": str(folder / "bge-m3"), "BGE_RERANK_MODEL": ""}
    with http_server(settings) as server:
        model = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
        yield Target("bge-serverless", server.url, "/v1/embeddings", model)


@contextmanager
def infinity_target(executable: Path, hub: Path) -> Iterator[Target]:
    """Run Infinity's HTTP server with the published embedding model in `hub`."""
    port = free_port()
    command = [executable, "v2", "--model-id", hub / "bge-m3", "--served-model-name", "peer"]
    command += ["--port", port, "--host", "127.0.0.1", "--engine", "torch", "--device", "cpu"]
    command += ["--no-bettertransformer", "--dtype", "float32", "--no-model-warmup"]
    target = Target("Infinity", f"http://127.0.0.1:{port}", "/embeddings", "peer")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with running(command, **quiet) as process:
        wait_for_response(target.url, process)
        yield target


def wait_for_response(url: str, process: subprocess.Popen[Any], timeout: float = 600) -> None:
    """Wait until the server sends any response."""
    deadline = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < deadline:
        try:
            httpx.get(url)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    sys.exit(f"{url} does not answer")


def read_metric(url: str, name: str) -> dict[str, float]:
    """Return the values of a metric of our HTTP server by their labels."""
    lines = [line.rsplit(" ", 1) for line in httpx.get(f"{url}/metrics").text.splitlines()]
    return {
        key.removeprefix(name): float(value) for key, value in lines if key.split("{")[0] == name
    }
