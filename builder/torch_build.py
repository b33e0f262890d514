"""Which build of PyTorch to install: for the CPU, NVIDIA or AMD, and from which index.

PyPI's build for Linux holds CUDA and is several GB. PyTorch's own index has a CPU build of 200 MB.
"""

from __future__ import annotations

import shutil
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

REACH_SECONDS = 5.0


@dataclass(frozen=True)
class TorchBuild:
    """A build, why it was chosen, and how pip finds it. `index` of None: pip's own indexes."""

    name: str
    reason: str
    requirement: str
    index: str | None = None


def choose(version: str, wanted: str, indexes: str) -> TorchBuild:
    """Return the build `wanted`, or the one for this machine if `wanted` is empty.

    `indexes` is the address below which PyTorch has an index for each build.
    """
    name, reason = (wanted, f"TORCH={wanted}") if wanted else _for_this_machine()
    if name == "cuda":
        # `===` leaves out builds with a local version, such as 2.13.0+cpu.
        return TorchBuild("PyPI's build, with CUDA on Linux", reason, f"torch==={version}")
    local = {"cpu": "cpu", "rocm": "rocm7.2"}.get(name, "")
    index = f"{indexes}/{local}"
    if local and (wanted or _is_reachable(index)):
        return TorchBuild(f"the {name} build", reason, f"torch=={version}+{local}", index)
    if local:
        reason = f"{reason}, but {index} cannot be reached"
    return TorchBuild("the build that pip finds", reason, f"torch=={version}")


def _for_this_machine() -> tuple[str, str]:
    """Return the build for this machine's accelerator, and why. An empty name: any build."""
    if sys.platform != "linux":
        return "", f"PyPI's build for {sys.platform} is small"
    if Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi"):
        return "cuda", "NVIDIA GPU"
    if Path("/dev/kfd").exists():
        return "rocm", "AMD GPU"
    return "cpu", "no NVIDIA or AMD GPU here"


def _is_reachable(index: str) -> bool:
    request = urllib.request.Request(f"{index}/torch/", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=REACH_SECONDS):
            return True
    except (OSError, ValueError, urllib.error.URLError):
        return False
