"""config.json, tokenizer.json and manifest.json with invalid fields or damaged bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from bge_builder.convert import convert
from bge_worker.engine.manifest import MANIFEST
from fuzz.checkpoint_files import (
    changed_fields,
    converts_or_fails_cleanly,
    damaged,
    fuzz,
    loads_or_fails_cleanly,
    write_tiny,
)

NESTED = b'{"a":' * 100_000


@pytest.mark.parametrize("model", ["bge-m3", "bge-reranker-v2-m3"])
def test_a_config_converts_or_is_refused(model: str, checkpoints: Path, tmp_path: Path) -> None:
    source = write_tiny(checkpoints / model, tmp_path / "tiny")
    assert converts_or_fails_cleanly(source)
    check_json(source, "config.json", examples=40)


def test_a_tokenizer_converts_or_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    source = write_tiny(checkpoints / "bge-m3", tmp_path / "tiny")
    check_json(source, "tokenizer.json", examples=15)


def test_a_manifest_loads_or_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    convert(write_tiny(checkpoints / "bge-m3", tmp_path / "tiny"), tmp_path / "out")
    path = tmp_path / "out" / MANIFEST
    content = json.loads(path.read_bytes())
    configs = changed_fields(content["config"], [*content["config"]])
    inputs = (
        changed_fields(content, [*content])
        | configs.map(lambda config: content | {"config": config})
    ).map(encoded) | damaged(path.read_bytes())

    def check(changed: bytes) -> None:
        path.write_bytes(changed)
        loads_or_fails_cleanly(path.parent)

    fuzz(check, inputs, examples=60)


def check_json(source: Path, name: str, examples: int) -> None:
    path = source / name
    valid = path.read_bytes()
    content = json.loads(valid)
    fields = changed_fields(content, [*content]).map(encoded)

    def check(changed: bytes) -> None:
        path.write_bytes(changed)
        converts_or_fails_cleanly(source)

    fuzz(check, fields | damaged(valid) | st.just(NESTED), examples)


def encoded(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()
