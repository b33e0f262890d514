"""Safetensors files with invalid headers, for the builder and for a worker."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from bge_builder.convert import convert
from bge_worker.engine.manifest import WEIGHTS, File
from fuzz.checkpoint_files import (
    NUMBERS,
    VALUES,
    converts_or_fails_cleanly,
    damaged,
    fuzz,
    loads_or_fails_cleanly,
    write_tiny,
)

DTYPES = st.sampled_from(["BOOL", "F4", "F8_E4M3", "F8_E8M0", "I8", "F16", "BF16", "F64", "C64"])
OFFSETS = st.lists(NUMBERS | st.integers(0, 5000), max_size=3)


def test_a_header_converts_or_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    source = write_tiny(checkpoints / "bge-reranker-v2-m3", tmp_path / "tiny")

    def check(content: bytes) -> None:
        (source / WEIGHTS).write_bytes(content)
        converts_or_fails_cleanly(source)

    fuzz(check, files((source / WEIGHTS).read_bytes()), examples=100)


def test_a_worker_loads_or_refuses_it(checkpoints: Path, tmp_path: Path) -> None:
    """The manifest has the hashes of the changed file."""
    source = write_tiny(checkpoints / "bge-reranker-v2-m3", tmp_path / "tiny")
    manifest = convert(source, tmp_path / "out")
    path = tmp_path / "out" / WEIGHTS

    def check(content: bytes) -> None:
        path.write_bytes(content)
        files = manifest.files | {WEIGHTS: File.of(path)}
        replace(manifest, files=files).write(path.parent)
        loads_or_fails_cleanly(path.parent)

    fuzz(check, files(path.read_bytes()), examples=100)


def files(valid: bytes) -> st.SearchStrategy[bytes]:
    (length,) = struct.unpack("<Q", valid[:8])
    header, data = json.loads(valid[8 : 8 + length]), valid[8 + length :]

    def with_header(changed: bytes, stated_length: int | None = None) -> bytes:
        return (
            struct.pack("<Q", len(changed) if stated_length is None else stated_length)
            + changed
            + data
        )

    lengths = st.integers(0, 2**64 - 1) | st.integers(0, 2 * length)
    return (
        headers(header).map(lambda changed: with_header(json.dumps(changed).encode()))
        | damaged(valid[8 : 8 + length]).map(with_header)
        | lengths.map(lambda stated_length: with_header(valid[8 : 8 + length], stated_length))
        | damaged(valid)
    )


def headers(header: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Change the dtype, shape, offsets or name of one to three tensors, or omit them."""
    names = st.sampled_from([*header]) | st.text(max_size=8)
    entry = st.fixed_dictionaries(
        {},
        optional={
            "dtype": DTYPES | VALUES,
            "shape": OFFSETS | VALUES,
            "data_offsets": OFFSETS | VALUES,
        },
    )
    changes = st.dictionaries(names, entry | VALUES, min_size=1, max_size=3)
    return changes.map(merged(header))


def merged(header: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that merges changes into `header`; other fields keep their values."""

    def merge(changes: dict[str, Any]) -> dict[str, Any]:
        entries = {
            name: header.get(name, {}) | entry if isinstance(entry, dict) else entry
            for name, entry in changes.items()
        }
        return header | entries

    return merge
