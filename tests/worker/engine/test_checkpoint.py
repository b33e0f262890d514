"""Loading is strict: a damaged runtime folder stops the start and the message names the fault."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bge_worker.engine.checkpoint import load
from bge_worker.engine.manifest import MANIFEST, TOKENIZER, WEIGHTS, File, Manifest
from bge_worker.errors import StartError
from bge_worker.settings import EngineName
from conftest import MODELS

Tensors = dict[str, torch.Tensor]
Damage = Callable[[Path], object]


@pytest.fixture
def folder(runtimes: Callable[[EngineName], Path], tmp_path: Path) -> Path:
    """A copy of the embedding model's runtime folder, to be damaged."""
    return Path(shutil.copytree(runtimes("packed") / MODELS[0], tmp_path / MODELS[0]))


def tensors(change: Callable[[Tensors], object], *, in_manifest: bool = True) -> Damage:
    """Change the weights; `in_manifest` records the new file's hashes."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        if in_manifest:
            manifest = Manifest.read(folder)
            files = manifest.files | {WEIGHTS: File.of(folder / WEIGHTS)}
            dataclasses.replace(manifest, files=files).write(folder)

    return damage


def manifest(**fields: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / MANIFEST
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return damage


def replace(name: str, old: bytes, new: bytes) -> Damage:
    return lambda f: (f / name).write_bytes((f / name).read_bytes().replace(old, new, 1))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing tensor": (
        tensors(lambda weights: weights.pop("encoder.layers.0.up.bias")),
        "lacks 1 tensors, `encoder.layers.0.up.bias` first",
    ),
    "extra tensor": (
        tensors(lambda weights: weights.update({"adapter": torch.zeros(1)})),
        "has 1 unknown tensors, `adapter` first",
    ),
    "another shape": (
        tensors(lambda weights: weights.update({"encoder.norm.bias": torch.zeros(1)})),
        "`encoder.norm.bias` is [1], not [512]",
    ),
    "another dtype": (
        tensors(lambda weights: weights.update({"head.sparse.bias": torch.zeros(1)})),
        "`head.sparse.bias` is torch.float32, not float16",
    ),
    "truncated weights": (lambda f: (f / WEIGHTS).write_bytes(b"short"), "has 5 bytes; its man"),
    "other weights of the same size": (
        tensors(lambda weights: weights["encoder.word"].add_(1), in_manifest=False),
        f"{WEIGHTS}` does not have the sha256",
    ),
    "another tokenizer": (replace(TOKENIZER, b"-8", b"-7"), f"{TOKENIZER}` does not have the sha"),
    "no tokenizer": (lambda f: (f / TOKENIZER).unlink(), f"{TOKENIZER}` is missing"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "is not a runtime folder"),
    "another format": (manifest(format=99), "has another format than 3"),
    "incomplete manifest": (
        lambda f: (f / MANIFEST).write_text('{"format": 3}'),
        "is not a manifest",
    ),
    "unknown layout": (manifest(layout="flat"), "is not a manifest"),
    "no files": (manifest(files={}), "is not a manifest"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_runtime_folder_is_refused(name: str, folder: Path) -> None:
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(StartError) as caught:
        load(folder, Manifest.read(folder), torch.device("cpu"), torch.float32)
    assert message in str(caught.value)
