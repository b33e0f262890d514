"""`bge` with and without the commands of bge-retrieval."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest
from click.testing import CliRunner

from bge_client.cli import bge, group


def install(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    """Replace the commands that packages have registered."""
    installed = EntryPoints(points)
    monkeypatch.setattr(group, "entry_points", installed.select)


def test_an_installed_command_is_loaded_and_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, EntryPoint("more", "bge_client.cli.texts:rerank", group.ENTRY_POINTS))
    assert CliRunner().invoke(bge, ["more", "--help"]).output.startswith("Usage: bge more")
    assert "more " in CliRunner().invoke(bge, ["--help"]).output


def test_missing_commands_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    result = CliRunner().invoke(bge, ["--help"])
    assert result.exit_code == 0
    commands = "bulk, evaluate, index, migrate, search"
    sentence = f"Not installed: {commands} (pip install bge-retrieval)"
    assert "".join(sentence.split()) in "".join(result.output.split())  # its line may be broken
    result = CliRunner().invoke(bge, ["index", "--help"])
    message = "`bge index` needs bge-retrieval: pip install bge-retrieval"
    assert (result.exit_code, result.output) == (2, f"bge: ConfigurationError: {message}\n")
    result = CliRunner().invoke(bge, ["unknown"])
    assert (result.exit_code, "No such command 'unknown'" in result.output) == (2, True)


@pytest.mark.parametrize(
    ("name", "package"), [("index", "bge-retrieval"), ("plan", "'bge-builder[plan]'")]
)
def test_a_missing_dependency_is_named(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, EntryPoint(name, f"no_such_module:{name}", group.ENTRY_POINTS))
    result = CliRunner().invoke(bge, [name])
    message = f"`bge {name}` needs no_such_module: pip install {package}"
    assert (result.exit_code, result.output) == (2, f"bge: ConfigurationError: {message}\n")


def test_embed_imports_nothing_of_retrieval() -> None:
    program = """
import sys
from bge_client.cli import bge
bge(["embed", "--help"], standalone_mode=False)
print(sorted({"bge_retrieval", "qdrant_client"} & sys.modules.keys()))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]", run.stderr
