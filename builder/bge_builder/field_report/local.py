"""The steps on a workstation, NVIDIA or AMD, with the real weights in `models`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from bge_client import Client

from . import measures
from .clients import measure_clients
from .record import ReportError

MODELS = ("bge-m3", "bge-reranker-v2-m3")
START_SECONDS = 300.0
STOP_SECONDS = 40.0
TAIL_LINES = 30  # of a command's output, kept in the report


def describe_card() -> dict[str, Any]:
    """Describe the GPU. Raises ReportError: there is none."""
    import torch

    if not torch.cuda.is_available():  # of ROCm too
        raise ReportError("PyTorch finds no GPU here. `make setup TORCH=…` installs another build")
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
    }


@dataclass(frozen=True)
class LocalStep:
    name: str
    run: Callable[[LocalServer], dict[str, Any]]


class LocalServer:
    """`worker/server.py` on a free port, started when a step needs it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = ExitStack()
        self._client: Client | None = None
        self.url = ""

    def command(self, *arguments: str) -> dict[str, Any]:
        """Run a command of this repository, showing its output. Return the end of it."""
        start = time.monotonic()
        process = subprocess.run(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(process.stdout, end="", flush=True)
        return {
            "agree": process.returncode == 0,
            "exit_code": process.returncode,
            "seconds": round(time.monotonic() - start, 1),
            "output": process.stdout.splitlines()[-TAIL_LINES:],
        }

    @property
    def folders(self) -> list[str]:
        return [str(self._folder / model) for model in MODELS]

    def client(self) -> Client:
        if self._client is None:
            self._client = self._open.enter_context(self._start())
        return self._client

    def _start(self) -> Client:
        """Raises ReportError: the server does not start."""
        embed_model, rerank_model = self.folders
        port = free_port()
        env = {**os.environ, "BGE_EMBED_MODEL": embed_model, "BGE_RERANK_MODEL": rerank_model}
        env.pop("BGE_API_KEY", None)
        process = subprocess.Popen(
            [sys.executable, "worker/server.py", "--port", str(port)], env=env
        )
        self._open.callback(process.wait, STOP_SECONDS)
        self._open.callback(process.terminate)
        self.url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + START_SECONDS
        while not is_ready(self.url):
            if process.poll() is not None or time.monotonic() > end:
                raise ReportError("`worker/server.py` does not start: see its output above")
            time.sleep(0.2)
        return Client(self.url, "")

    def close(self) -> None:
        self._open.close()


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/ping").status_code == 200
    except httpx2.HTTPError:
        return False


def verify(server: LocalServer) -> dict[str, Any]:
    return server.command("-m", "bge_builder", "verify", *server.folders)


def benchmarks(server: LocalServer) -> dict[str, Any]:
    """Run the tests that need a GPU, fp16 against fp32, the peers and the profile."""
    return server.command("benchmarks/gpu.py")


def golden_values(server: LocalServer) -> dict[str, Any]:
    return measures.measure_golden_values(server.client())


def clients(server: LocalServer) -> dict[str, Any]:
    return measure_clients(server.client(), {"openai": f"{server.url}/v1"}, "none")


def lone_query(server: LocalServer) -> dict[str, Any]:
    return measures.measure_lone_query(server.client())


def concurrency(server: LocalServer) -> dict[str, Any]:
    return measures.measure_concurrency(server.client())


def throughput(server: LocalServer) -> dict[str, Any]:
    return measures.measure_throughput(server.client())


# Steps that start no server first: it would take the card's memory and time from them.
STEPS: Sequence[LocalStep] = (
    LocalStep("local: verify", verify),
    LocalStep("local: benchmarks", benchmarks),
    LocalStep("local: golden values", golden_values),
    LocalStep("local: clients", clients),
    LocalStep("local: lone query", lone_query),
    LocalStep("local: concurrency", concurrency),
    LocalStep("local: throughput", throughput),
)
