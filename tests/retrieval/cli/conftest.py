"""Indexed collections."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bge_client.cli import bge
from commands import COURSE, FIELDS, report


@pytest.fixture(scope="module")
def small(served: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection `course` of one passage, for commands that fail before searching."""
    path = tmp_path_factory.mktemp("small")
    arguments = ["index", "--collection", "course", "--path", path, "--endpoint", served]
    result = CliRunner().invoke(bge, [*map(str, arguments)], input='{"text": "море"}')
    assert report(result)["written"] == 1
    return path


@pytest.fixture(scope="module")
def indexed(served: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The course material in a local-mode folder."""
    path = tmp_path_factory.mktemp("qdrant")
    arguments = ["index", COURSE / "corpus.jsonl", "--collection", "course", "--path", path]
    arguments += ["--endpoint", served, *FIELDS]
    result = CliRunner().invoke(bge, [*map(str, arguments)])
    assert report(result)["written"] == 184
    return path
