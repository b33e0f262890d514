"""Shared by the builder's fuzz targets: a tiny checkpoint, the checks, the loop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from bge_builder.convert import ARCHITECTURES, convert, source_shapes
from bge_builder.errors import BuilderError
from bge_builder.hub_config import read_config
from bge_worker.engine.checkpoint import load
from bge_worker.engine.manifest import Manifest, check_files
from bge_worker.errors import StartError
from fuzz.duration import fuzz_settings, rounds

SIZES = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
}
NUMBERS = st.sampled_from([-(2**63), -1, 0, 1, 2, 2**31, 10**9, 2**63, 2**64 - 1, 2**64, 10**30])
SCALARS = st.none() | st.booleans() | st.integers() | NUMBERS | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def write_tiny(miniature: Path, folder: Path) -> Path:
    """Write the miniature's tokenizer and configuration with random weights of a tiny shape."""
    shutil.copytree(
        miniature, folder, ignore=shutil.ignore_patterns("*.bin", "*.pt", "*.safetensors")
    )
    path = folder / "config.json"
    raw = json.loads(path.read_bytes()) | SIZES
    path.write_text(json.dumps(raw))
    role = ARCHITECTURES[raw["architectures"][0]]
    shapes = source_shapes(read_config(path, raw), role)
    tensors = {name: torch.randn(shape) * 0.1 for name, shape in shapes.items()}
    if role == "rerank":
        save_file(tensors, folder / "model.safetensors")
        return folder
    for head in ("sparse_linear", "colbert_linear"):
        parts = {name: tensors.pop(f"{head}.{name}") for name in ("weight", "bias")}
        torch.save(parts, folder / f"{head}.pt")
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def converts_or_fails_cleanly(source: Path) -> bool:
    """Return True if it converts and loads; else check that a one-line error leaves no output."""
    destination = source.with_name("out")
    try:
        convert(source, destination, dtype="float32")
    except BuilderError as error:
        assert_one_line(error)
        assert not destination.exists()
        return False
    assert loads_or_fails_cleanly(destination)
    shutil.rmtree(destination)
    return True


def loads_or_fails_cleanly(folder: Path) -> bool:
    """Return True if a worker loads the folder; else check that the error is one line."""
    try:
        manifest = Manifest.read(folder)
        check_files(folder, manifest)
        load(folder, manifest, torch.device("cpu"), torch.float32)
    except StartError as error:
        assert_one_line(error)
        return False
    return True


def assert_one_line(error: Exception) -> None:
    assert "`" in str(error)
    assert len(str(error)) < 1000
    assert "\n" not in str(error)


class Content(bytes):
    """A file's content; a failing example shows only its start."""

    def __repr__(self) -> str:
        return f"{len(self)} bytes: {bytes(self[:400])!r}"


def fuzz(check: Callable[[bytes], object], inputs: st.SearchStrategy[bytes], examples: int) -> None:
    """Run `check` on `examples` inputs, or for FUZZ_SECONDS."""
    check_all = fuzz_settings(examples)(given(inputs.map(Content))(check))
    for _ in rounds():
        check_all()


# --------------------------------------------------------------------------- damaged bytes


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Replace, insert or remove a few bytes, or truncate the content."""
    change = st.tuples(
        st.integers(0, len(content)), st.integers(0, 4), st.binary(max_size=8)
    )  # position, bytes removed, bytes inserted
    changed = st.lists(change, min_size=1, max_size=4).map(lambda changes: apply(content, changes))
    return changed | st.integers(0, len(content)).map(lambda end: content[:end])


def apply(content: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for start, removed, inserted in changes:
        content = content[:start] + inserted + content[start + removed :]
    return content


def changed_fields(content: dict[str, Any], fields: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Set some fields to other values, remove some, add some."""
    name = st.sampled_from(fields) | st.text(max_size=8)
    new = st.dictionaries(name, VALUES, max_size=3)
    removed = st.sets(st.sampled_from(fields), max_size=2)
    return st.tuples(new, removed).map(
        lambda drawn: {
            key: value for key, value in (content | drawn[0]).items() if key not in drawn[1]
        }
    )
