"""Create or complete .venv: `make setup` and `make setup-test` run this.

python3 builder/install.py FOLDER [--torch cpu|cuda|rocm] [--tests]

    create    the environment, unless an earlier setup has, with a recent pip
    choose    PyTorch's build (`torch_build.py`)
    resolve   the packages, and say how many bytes will be downloaded
    install   exactly those versions, then the packages of this repository

Needs the standard library alone. pip's own settings (`PIP_INDEX_URL`, pip.conf) apply.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from bge_builder.progress import Step
from environment import Environment, SetupError
from torch_build import TorchBuild, choose

# Older ones download every package in a dry run, and take four times as long to resolve.
PIP = "pip==26.3"
PYTORCH = "https://download.pytorch.org/whl"
SIZE_SECONDS = 10.0
ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ("worker/requirements.txt", "builder/requirements.txt")


class Package(NamedTuple):
    """A package that pip would install. `size` in bytes: 0 if it is here, None if unknown."""

    name: str
    version: str
    url: str
    size: int | None


def main() -> None:
    parser = argparse.ArgumentParser(description="Create or complete a virtual environment.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--torch", default="", choices=["", "cpu", "cuda", "rocm"])
    parser.add_argument("--pytorch", default=PYTORCH, help="address of PyTorch's indexes")
    parser.add_argument("--tests", action="store_true", help="the packages of the tests too")
    options = parser.parse_args()
    try:
        environment = Environment(options.folder)
        # An interrupted setup may have left a package half installed.
        is_complete = (options.folder / "setup").exists() and environment.works
        with Step(f"{'checking' if is_complete else 'creating'} {options.folder}"):
            if not is_complete:
                environment.create()
            environment.pip("install", "-q", PIP)
        if options.tests:  # PyTorch is installed
            install(environment, None, (*REQUIREMENTS, "tests/requirements.txt"))
            install_ours(environment, ("retrieval", "tests"))
        else:
            build = choose(torch_version(), options.torch, options.pytorch)
            install(environment, build, REQUIREMENTS)
            install_ours(environment, ("worker", "client", "builder"))
    except (SetupError, OSError) as error:
        sys.exit(f"setup failed: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def torch_version() -> str:
    pinned = (ROOT / REQUIREMENTS[0]).read_text("utf-8")
    return str(re.search(r"^torch==(\S+)$", pinned, re.MULTILINE)[1])  # type: ignore[index]


def install(environment: Environment, build: TorchBuild | None, files: Sequence[str]) -> None:
    """Install the requirements of `files`. Raises SetupError: pip fails."""
    torch = [build.requirement] if build else []
    torch += ["--extra-index-url", build.index] if build and build.index else []
    with Step("resolving the packages"):
        required = [argument for file in files for argument in ("-r", str(ROOT / file))]
        packages = resolve(environment, [*torch, *required])
    announce(packages, build)
    if packages:
        with Step(f"installing {len(packages)} packages") as step:
            pins = [f"{package.name}=={package.version}" for package in packages]
            options = ["--no-deps", "--progress-bar", "raw"]
            environment.pip("install", *options, *torch, *pins, step=step)


def install_ours(environment: Environment, folders: Sequence[str]) -> None:
    """Install packages of this repository, so that edits apply at once."""
    with Step("installing this repository's packages"):
        editable = [argument for folder in folders for argument in ("-e", str(ROOT / folder))]
        environment.pip("install", "-q", "--no-deps", "--no-build-isolation", *editable)


def resolve(environment: Environment, options: Sequence[str]) -> list[Package]:
    """Return what pip would install, and the size of each download."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        environment.pip("install", "-q", "--dry-run", "--report", path, *options)
        report: dict[str, Any] = json.loads(path.read_bytes())
    items = report["install"]
    cache = environment.cache
    with ThreadPoolExecutor(16) as pool:
        urls = [item["download_info"]["url"] for item in items]
        sizes = pool.map(download_size, urls, [cache] * len(urls))
        return [
            Package(item["metadata"]["name"], item["metadata"]["version"], url, size)
            for item, url, size in zip(items, urls, sizes, strict=True)
        ]


def download_size(url: str, cache: Path | None) -> int | None:
    if not url.startswith("http") or (cache and is_cached(url, cache)):
        return 0
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=SIZE_SECONDS) as response:
            return int(response.headers["content-length"])
    except (OSError, TypeError, ValueError):
        return None


def is_cached(url: str, cache: Path) -> bool:
    """Whether pip's cache has the body. A cache of another layout counts as empty."""
    name = hashlib.sha224(url.encode()).hexdigest()
    return cache.joinpath("http-v2", *name[:5], f"{name}.body").exists()


def announce(packages: Sequence[Package], build: TorchBuild | None) -> None:
    """Say which build of PyTorch comes from where, and how much will be downloaded."""
    for package in packages:
        if build and package.name == "torch":
            where = package.url.rsplit("/", 1)[0]
            tell(f"  PyTorch {package.version}: {build.name} ({build.reason})")
            tell(f"  from {where}: {amount([package])}; TORCH=cpu, cuda or rocm overrides")
    tell(f"  {len(packages)} packages: {amount(packages)}")


def amount(packages: Sequence[Package]) -> str:
    known = sum(package.size or 0 for package in packages) / 1e6
    unknown = sum(package.size is None for package in packages)
    return f"{known:.0f} MB to download" + (f", {unknown} of unknown size" if unknown else "")


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
