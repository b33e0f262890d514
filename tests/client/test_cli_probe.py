"""`bge probe`: the table, the exit code, and a probe in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bge_client import Client, Probe
from fakes.host_vectors import dense_of
from fakes.hosts import Host

Run = Callable[..., Any]


@pytest.fixture
def deepinfra(worker: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host with the worker's own vectors."""
    with Host("deepinfra", lambda texts: dense_of(worker, texts)) as host:
        for name, value in host.env.items():
            monkeypatch.setenv(name, value)
        yield host


def test_a_host_with_the_endpoint_s_vectors_matches(run: Run, deepinfra: Host) -> None:
    result = run("probe", "deepinfra")
    assert result.exit_code == 0
    header, *rows, verdict = result.stdout.splitlines()
    assert header.split() == ["text", "cosine", "closest", "other", "sparse", "differ"]
    assert [row.split()[:2] for row in rows] == [
        [name, "1.00000"] for name in ("ru", "en", "short", "long", "odd")
    ]
    assert verdict.startswith("deepinfra matches e3f346c5c27fe0c1 (cosine >= 0.999")


def test_other_vectors_are_refused_with_exit_code_5(
    run: Run, deepinfra: Host, worker: Client
) -> None:
    deepinfra.embed = lambda texts: dense_of(worker, texts, max_length=512)
    result = run("probe", "deepinfra")
    assert result.exit_code == 5
    assert "deepinfra does not match: text `long` has cosine 0." in result.stderr
    assert len(result.stdout.splitlines()) == 6


def test_a_probe_in_a_file_needs_no_endpoint(
    run: Run, deepinfra: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "probe.json"
    assert run("probe", "--save", path).exit_code == 0
    probe = Probe.loads(path.read_bytes())
    assert (probe.fingerprint, probe.dimensions) == ("e3f346c5c27fe0c1", 512)
    compared = run("probe", "bge", "--against", path)  # its sparse weights too
    assert [row.split()[3] for row in compared.stdout.splitlines()[1:6]] == ["0.0000"] * 5
    monkeypatch.delenv("BGE_EMBEDDINGS_ENDPOINT")
    assert run("probe", "deepinfra", "--against", path).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pass either PROVIDER or --save"),
        (["deepinfra", "--save", "probe.json"], "pass either PROVIDER or --save"),
        (["--save", "a.json", "--against", "b.json"], "--against means nothing with --save"),
        (["novita"], "set `NOVITA_API_KEY` to use novita"),
        (["deepinfra", "--against", "/no/such/file"], "/no/such/file: No such file"),
        (["openai"], "'openai' is not one of 'bge', 'jina', 'deepinfra'"),
    ],
)
def test_invalid_usage(run: Run, arguments: list[str], message: str) -> None:
    result = run("probe", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
