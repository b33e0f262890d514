"""`python worker/server.py` as a subprocess."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import httpx

from conftest import ROOT

SERVER = ROOT / "worker" / "server.py"


class ServerProcess:
    """The server on a free port. Killed at the end of the block."""

    def __init__(
        self, env: dict[str, str], log: Path, *arguments: str, descriptors: int | None = None
    ) -> None:
        """`descriptors` limits the open files of the process."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._env = {n: v for n, v in os.environ.items() if not n.startswith(("BGE_", "PORT"))}
        self._env |= env
        self._arguments = ("--port", str(self.port), *arguments)
        self._log = log
        limit = f"ulimit -n {descriptors};" if descriptors is not None else ""
        self._shell = ("sh", "-c", f'{limit} exec "$@"', "sh") if limit else ()

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._shell, sys.executable, str(SERVER), *self._arguments],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8")

    def ping(self) -> int | None:
        try:
            return httpx.get(f"{self.url}/ping", timeout=10).status_code
        except httpx.TransportError:
            return None

    def wait_for(self, status: int, timeout: float = 60.0) -> list[int | None]:
        """Ping until the response is `status`. Returns all statuses, None for no response."""
        statuses: list[int | None] = []
        deadline = time.monotonic() + timeout
        while not statuses or statuses[-1] != status:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            statuses.append(self.ping())
            time.sleep(0.01)
        return statuses

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
