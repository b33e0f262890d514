"""`make test-docs`: run the commands of every page, as somebody who follows it does.

A scratch copy of the repository is installed with `make setup`, and `make serve` runs beside the
pages. A page is one shell session, so that `cd`, `export` and an activated environment last.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from pages import PAGES, ROOT, Block, Page

START_SECONDS = 60
SECRETS = ("BGE_", "RUNPOD_", "QDRANT_", "JINA_", "EMBEDDINGS_", "RERANKER_", "PYTEST_", "OMP_")
RUN_PAGES = [page for page in PAGES if any(block.is_run for block in page.blocks)]


@pytest.fixture(scope="session")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, installed."""
    if not request.config.getoption("--docs"):
        pytest.skip("takes minutes and installs packages: make test-docs")
    copy = tmp_path_factory.mktemp("docs") / "bge-serverless"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, files.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    subprocess.run(["make", "setup"], cwd=copy, env=environment(copy), check=True)
    return copy


@pytest.fixture(scope="session")
def port(folder: Path) -> Iterator[int]:
    """The port on which `make serve` answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
    env = environment(folder) | {"PORT": str(number)}
    server = subprocess.Popen(["make", "serve"], cwd=folder, env=env, start_new_session=True)
    try:
        wait_until_ready(f"http://127.0.0.1:{number}/ping")
        yield number
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def environment(folder: Path) -> dict[str, str]:
    """No setting of this process, and the commands of the copy's environment first."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(SECRETS)}
    env.pop("VIRTUAL_ENV", None)
    # Git's hooks set it, and a make that runs this test its own flags.
    env = {name: env[name] for name in env if not name.startswith(("GIT_", "MAKE", "MFLAGS"))}
    return env | {"PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}"}


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urlopen(url) as response:
                if response.status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.2)
    pytest.fail(f"no answer from {url} in {START_SECONDS} s")


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_work(page: Page, folder: Path, port: int, tmp_path: Path) -> None:
    blocks = [block for block in page.blocks if block.is_run]
    script = "set -eo pipefail\n" + "".join(
        f"exec > {tmp_path / str(index)}\n{command(block, port, tmp_path / f'{index}.py')}\n"
        for index, block in enumerate(blocks)
    )
    shell = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment(folder), stderr=subprocess.PIPE
    )
    for index, block in enumerate(blocks):
        printed = tmp_path / str(index)
        assert printed.is_file(), f"{page.name}: the block before line {block.line} failed"
        output = printed.read_text("utf-8")
        print(f"--- {page.name}:{block.line}\n{output}")
        if shell.returncode == 0 and block.output is not None:
            check_output(block.output, output.replace(f":{port}", ":8000"))
    assert shell.returncode == 0, shell.stderr.decode()


def test_the_site_is_complete_and_loads_nothing_from_elsewhere(folder: Path) -> None:
    subprocess.run(["make", "docs"], cwd=folder, env=environment(folder), check=True)
    pages = [path.read_text("utf-8") for path in (folder / "site").rglob("*.html")]
    assert len(pages) >= len([page for page in PAGES if page.name.startswith("docs/")])
    loaded = r"<(?:script|img|iframe|link)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//[^>]*"
    assert [url for page in pages for url in re.findall(loaded, page)] == []


def command(block: Block, port: int, file: Path) -> str:
    """Return the shell's command for a block, with the server's port in place of 8000."""
    code = block.code.replace(":8000", f":{port}")
    if block.language == "sh":
        return code
    file.write_text(code, "utf-8")
    return f"python {file}"


def check_output(expected: str, output: str) -> None:
    """Compare without white space, since a page breaks long lines."""
    parts = (re.escape("".join(part.split())) for part in expected.split("…"))
    assert re.fullmatch(".*?".join(parts), "".join(output.split())), (
        f"expected\n{expected}\nprinted\n{output}"
    )
