"""A file of an earlier run, with any content, is resumed or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bge_client import BGEError
from bge_client.files import OUTPUTS, OutputOptions, Text, encode, locked, resume, write_npz
from bge_client.results import Embedding, SparseVector
from fuzz.duration import fuzz_settings, rounds
from fuzz.mutation import mutated, mutated_bytes

WANTED = OutputOptions(OUTPUTS, None, exact=True)
TEXTS = [Text(0, "море", "a"), Text(1, "суша"), Text(3, "лес", 7)]
VECTORS = Embedding(
    np.ones(4, np.float32),
    SparseVector(np.array([3, 7], np.uint32), np.ones(2, np.float32)),
    np.ones((2, 4), np.float16),
    truncated=False,
    fingerprint="f",
)
LINES = [encode(text, VECTORS, WANTED) for text in TEXTS]


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Lines of which one is mutated; then bytes of the file are mutated, or none."""
    lines = list(LINES)
    changed: Any = draw(mutated(json.loads(lines[draw(st.integers(0, 2))])))
    lines[draw(st.integers(0, 2))] = json.dumps(changed) + "\n"
    content = "".join(lines).encode()
    return draw(mutated_bytes(content)) if draw(st.booleans()) else content


def resumed(path: Path, content: bytes, texts: Iterator[Text]) -> int:
    path.write_bytes(content)
    with locked(path) as file:
        done = resume(file, path, texts, WANTED)
    assert done.fingerprint is not None or done.lines == 0
    return done.lines


@fuzz_settings()
@given(contents())
def check_resume(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path, target = Path(folder, "x.npz.part"), Path(folder, "x.npz")
        texts = iter(TEXTS)
        try:
            lines = resumed(path, content, texts)
        except BGEError:
            assert path.read_bytes() == content  # a refused file is not changed
            return
        assert content.startswith(remaining := path.read_bytes())
        assert remaining.count(b"\n") == lines
        assert [*texts] == TEXTS[lines:]
        if lines:
            check_npz(path, target, lines)


def check_npz(path: Path, target: Path, lines: int) -> None:
    try:
        write_npz(path, target)
    except BGEError:
        assert not target.exists()
        return
    with np.load(target) as arrays:
        assert len(arrays["dense"]) == len(arrays["truncated"]) == lines
        assert np.isfinite(arrays["dense"]).all()
        assert arrays["sparse_indptr"][-1] == len(arrays["sparse_values"])
        assert arrays["colbert_indptr"][-1] == len(arrays["colbert"])


def test_files_of_broken_runs() -> None:
    for _ in rounds():
        check_resume()
