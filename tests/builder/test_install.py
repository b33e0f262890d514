"""`make setup`, with the real pip and an index of tiny wheels on loopback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from zipfile import ZipFile

import pytest

import install
import torch_build
from environment import Environment, SetupError

TORCH = "2.13.0"


@pytest.fixture
def indexes(tmp_path: Path) -> Iterator[str]:
    """The address of PyPI's stand-in at /simple and of PyTorch's at /whl/cpu."""
    write_wheel(tmp_path / "simple", "torch", TORCH)
    write_wheel(tmp_path / "simple", "tiny", "1.0")
    write_wheel(tmp_path / "whl/cpu", "torch", f"{TORCH}+cpu")
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def write_wheel(index: Path, name: str, version: str) -> None:
    (index / name).mkdir(parents=True)
    info = f"{name}-{version}.dist-info"
    with ZipFile(index / name / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.bin", os.urandom(2_000_000))
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, indexes: str, tmp_path: Path) -> Environment:
    """This environment's pip, with the stand-in as its index; installs into a folder."""
    if int(version("pip").split(".")[0]) < 26:
        pytest.skip("`make setup-test` installs a newer pip")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{indexes}/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_IGNORE_INSTALLED", "1")
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "installed"))
    monkeypatch.setattr(torch_build, "_for_this_machine", lambda: ("cpu", "no GPU here"))
    return Environment(Path(sys.prefix))


def setup(environment: Environment, tmp_path: Path, wanted: str, pytorch: str) -> set[str]:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"torch=={TORCH}\ntiny==1.0\n")
    install.install(environment, torch_build.choose(TORCH, wanted, pytorch), [str(requirements)])
    return {path.name for path in (tmp_path / "installed").glob("*.dist-info")}


@pytest.mark.parametrize(
    ("wanted", "reachable", "installed", "shown"),
    [
        ("", True, "2.13.0+cpu", "the cpu build (no GPU here)"),
        ("", False, "2.13.0", "the build that pip finds (no GPU here, but {} cannot be reached)"),
        ("cpu", True, "2.13.0+cpu", "the cpu build (TORCH=cpu)"),
        ("cuda", True, "2.13.0", "PyPI's build, with CUDA on Linux (TORCH=cuda)"),
    ],
)
def test_the_build_of_pytorch_is_chosen_and_announced(
    wanted: str,
    reachable: bool,
    installed: str,
    shown: str,
    environment: Environment,
    indexes: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # An index of the user's own stays, and does not decide.
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{indexes}/whl/cpu" if wanted == "cuda" else "")
    pytorch = f"{indexes}/whl" if reachable else "http://127.0.0.1:9/whl"
    folders = setup(environment, tmp_path, wanted, pytorch)
    assert folders == {f"torch-{installed}.dist-info", "tiny-1.0.dist-info"}
    before, installing = capsys.readouterr().err.split("installing 2 packages")
    assert f"PyTorch {installed}: {shown.format(f'{pytorch}/cpu')}" in before
    assert f"from {indexes}/{'whl/cpu' if '+' in installed else 'simple'}/torch: 2 MB" in before
    assert "2 packages: 4 MB to download" in before
    assert " s\n" in installing


def test_what_is_missing_is_one_sentence(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        SetupError, match=r"^No matching distribution found for torch==2\.13\.0\+rocm"
    ):
        setup(environment, tmp_path, "rocm", "http://127.0.0.1:9/whl")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(SetupError, match="pip cannot reach a package index: check the network"):
        setup(environment, tmp_path, "", "http://127.0.0.1:9/whl")
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(SetupError, match=r"`false -m venv .*failed: is the module venv installed"):
        Environment(tmp_path / "venv").create()


def test_an_environment_of_a_python_that_is_gone_does_not_work(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/nowhere/python3")
    assert not Environment(tmp_path).works


def test_a_cached_download_costs_no_bytes(indexes: str, tmp_path: Path) -> None:
    url = f"{indexes}/simple/tiny/tiny-1.0-py3-none-any.whl"
    assert install.download_size(url, tmp_path) > 2_000_000
    assert install.download_size(f"{url}.gone", tmp_path) is None
    assert install.download_size(f"file://{tmp_path}/tiny.whl", None) == 0
    name = install.hashlib.sha224(url.encode()).hexdigest()
    body = tmp_path / "http-v2" / "/".join(name[:5]) / f"{name}.body"
    body.parent.mkdir(parents=True)
    body.touch()
    assert install.download_size(url, tmp_path) == 0
