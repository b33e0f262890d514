"""A virtual environment and its pip. Needs the standard library alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile

from bge_builder.progress import Step

# pip writes this before it tries again to reach an index.
NO_NETWORK = "Retrying"


class SetupError(Exception):
    """Shown in one line."""


class Environment:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._python = str(folder / "bin" / "python")

    @property
    def works(self) -> bool:
        """Whether it has pip, and the version of Python that runs this script."""
        version = ".".join(map(str, sys.version_info[:2]))
        command = [self._python, "-m", "pip", "--version"]
        try:
            shown = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return False
        return shown.stdout.rstrip().endswith(f"(python {version})")

    def create(self) -> None:
        """Create it, in place of an earlier one. Raises SetupError: Python has no venv."""
        command = [sys.executable, "-m", "venv", "--clear", str(self._folder)]
        created = subprocess.run(command, capture_output=True, text=True)
        if created.returncode:
            raise SetupError(
                f"`{sys.executable} -m venv {self._folder}` failed: is the module venv installed? "
                "Debian and Ubuntu have it in the package python3-venv"
            )

    @property
    def cache(self) -> Path | None:
        """The folder of pip's cache, None if it is off."""
        try:
            return Path(self.pip("cache", "dir").strip())
        except SetupError:
            return None

    def pip(self, *arguments: str | Path, step: Step | None = None) -> str:
        """Run pip and return its output; show in `step` how much it has downloaded.

        Raises SetupError: pip fails.
        """
        command = [self._python, "-m", "pip", *arguments, "--disable-pip-version-check"]
        pipe = subprocess.PIPE
        with (
            TemporaryFile("w+") as errors,
            subprocess.Popen(command, stdout=pipe, stderr=errors, text=True) as process,
        ):
            output = read_output(process, step)
            if process.wait():
                errors.seek(0)
                raise SetupError(reason(errors.read()))
        return output


def read_output(process: subprocess.Popen[str], step: Step | None) -> str:
    """Return what pip prints, less its raw progress ("Progress 12 of 345", in bytes)."""
    lines, finished = [], 0
    for line in process.stdout or ():
        progress = re.fullmatch(r"Progress (\d+) of (\d+)\n", line)
        if progress is None:
            lines.append(line)
        elif step:
            current, total = map(int, progress.groups())
            step.note(f"{(finished + current) / 1e6:.0f} MB")
            finished += total if current == total else 0
    return "".join(lines)


def reason(errors: str) -> str:
    """Return one sentence for what pip wrote on stderr."""
    if NO_NETWORK in errors and "(from versions: none)" in errors:
        return (
            "pip cannot reach a package index: check the network, `HTTPS_PROXY`, and "
            "`PIP_INDEX_URL` if there is a mirror"
        )
    lines = [line for line in errors.splitlines() if line.startswith("ERROR: ")]
    return lines[-1].removeprefix("ERROR: ") if lines else errors.strip()[-500:]
