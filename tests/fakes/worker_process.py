"""A RunPod worker as the platform runs it: its own process, steered by the environment alone."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Self

from fakes.runpod_server import JobServer


class WorkerProcess:
    """`python script` against a `JobServer`; killed, ping process included, on the way out.

    `stdout` and `stderr` hold what it has written so far, and can be read until then.
    """

    def __init__(self, script: Path, server: JobServer, env: dict[str, str] | None = None) -> None:
        self._script = script
        self._server = server
        self._env = _neutral_environment() | server.environment() | (env or {})

    @property
    def name(self) -> str:
        return self._env["RUNPOD_POD_ID"]

    def __enter__(self) -> Self:
        # Files, not pipes: they never fill up, and need no reader that waits for the end of a
        # stream which the ping process may hold open long after the worker is gone.
        self._stdout, self._stderr = TemporaryFile(), TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, str(self._script)],
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=self._stdout,
            stderr=self._stderr,
            start_new_session=True,  # a process group of its own, to be killed as one
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._stdout.close()
        self._stderr.close()

    @property
    def stdout(self) -> str:
        return _content(self._stdout)

    @property
    def stderr(self) -> str:
        return _content(self._stderr)

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until the worker asks for its first job."""
        deadline = time.monotonic() + timeout
        while self.name not in self._server.workers:
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline:
                state = "is not ready" if code is None else f"exited with {code}"
                raise RuntimeError(f"the worker {state}\n{self.stdout}\n{self.stderr}")
            time.sleep(0.01)

    def terminate(self) -> None:
        """SIGTERM to the worker alone, as a container's first process gets it."""
        self._process.terminate()

    def hang_up(self) -> None:
        """SIGHUP, as a terminal that is closed sends it."""
        self._process.send_signal(signal.SIGHUP)

    def wait(self, timeout: float = 10.0) -> int:
        return self._process.wait(timeout)

    def kill(self) -> None:
        """End it as a lost machine would: no handler runs, nothing is answered."""
        with suppress(ProcessLookupError):  # the whole group has ended by itself
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _neutral_environment() -> dict[str, str]:
    """The caller's variables without those that would steer the worker."""
    steering = ("RUNPOD_", "BGE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    return kept | {"PYTHONUNBUFFERED": "1"}


def _content(file: IO[bytes]) -> str:
    # The worker shares the file's position: seek() here would move its next write.
    descriptor = file.fileno()
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")
