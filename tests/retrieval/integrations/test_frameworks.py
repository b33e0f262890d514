"""Run each framework's tests in its environment, against the worker and Qdrant's stand-in.

`make test-frameworks` creates the environments.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bge_worker.engine.engine import Engine
from bge_worker.settings import Settings
from conftest import ROOT
from fakes.qdrant_server import QdrantServer
from fakes.serving import serving
from pages import Page

FRAMEWORKS = {"haystack": "haystack", "langchain": "langchain_core", "llamaindex": "llama_index"}
FOLDER = Path(__file__).parent / "frameworks"
PAGE = Page(ROOT / "docs" / "frameworks.md")


@pytest.fixture
def environment(
    request: pytest.FixtureRequest, packed: Engine, tmp_path: Path
) -> Iterator[dict[str, str]]:
    """The variables of a process with the addresses of a worker and an empty Qdrant server."""
    if not request.config.getoption("--frameworks"):
        pytest.skip("`make test-frameworks` installs the frameworks")
    with serving(packed, Settings()) as url, QdrantServer() as qdrant:
        yield {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "HAYSTACK_TELEMETRY_ENABLED": "False",
            "BGE_EMBEDDINGS_ENDPOINT": url,
            "QDRANT_URL": qdrant.url,
        }


def python(name: str) -> Path:
    return ROOT / f".venv-frameworks-{name}" / "bin" / "python"


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_framework_s_tests_pass(name: str, environment: dict[str, str]) -> None:
    command = [python(name), "-m", "pytest", "-v", "-rA", FOLDER / f"test_{name}.py"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=220)
    print(process.stdout)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_page_s_example_prints_what_the_page_shows(
    name: str, environment: dict[str, str], tmp_path: Path
) -> None:
    (block,) = (block for block in PAGE.blocks if f"integrations.{name} " in block.code)
    code = block.code.replace("http://127.0.0.1:8000", environment["BGE_EMBEDDINGS_ENDPOINT"])
    (tmp_path / "retrieval").symlink_to(ROOT / "retrieval")
    command = [python(name), "-c", code]
    process = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == block.output


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_missing_framework_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, FRAMEWORKS[name], None)
    with pytest.raises(ImportError, match=re.escape(f"pip install 'bge-retrieval[{name}]'")):
        importlib.import_module(f"bge_retrieval.integrations.{name}")
