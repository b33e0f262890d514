"""Hugging Face folder → runtime folder: checked, fused, cast, with a manifest.

    word + position      the one token-type row is added to every position
    layers.i.qkv         query, key and value in one matrix [3D, D]
    head                 sparse and colbert, or the classifier

Everything that could run code or mean another architecture is refused here, at build time, so
that a worker needs to open nothing but safetensors.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bge_worker.engine.checkpoint import (
    DTYPES,
    MANIFEST,
    TOKENIZER,
    WEIGHTS,
    File,
    Manifest,
    expected_shapes,
    fingerprint,
    one_line,
    quoted,
)
from bge_worker.engine.config import Config, Role

from . import probe
from .errors import BuilderError
from .folders import locked, temporary
from .pins import PINS

SPARSE_HEAD, COLBERT_HEAD = "sparse_linear.pt", "colbert_linear.pt"
ARCHITECTURES: dict[str, Role] = {
    "XLMRobertaModel": "embed",
    "XLMRobertaForSequenceClassification": "rerank",
}
SERVED_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_NUMBER = 2**31 - 1  # of a configuration's fields
PROBE_SECONDS = 60.0  # for a tokenizer to load and to read a few short texts
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 8192,
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}


class ConvertError(BuilderError):
    """The source folder is not a checkpoint this project serves. One sentence names why."""


@dataclass(frozen=True)
class Source:
    """A checked source folder: its role, its architecture and its files."""

    folder: Path
    role: Role
    config: Config

    @property
    def prefix(self) -> str:
        return "roberta." if self.role == "rerank" else ""

    @property
    def weights(self) -> Path:
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (self.folder / name).is_file():
                return self.folder / name
        raise ConvertError(f"`{self.folder}` has neither model.safetensors nor pytorch_model.bin")

    @property
    def parts(self) -> list[Path]:
        """The files that decide what the model answers."""
        heads = [SPARSE_HEAD, COLBERT_HEAD] if self.role == "embed" else []
        return [self.weights, *(self.folder / name for name in heads), self.folder / TOKENIZER]


def convert(
    source_folder: Path,
    destination: Path,
    *,
    dtype: str = "float16",
    engine: str = "packed",
    name: str | None = None,
) -> Manifest:
    """Turn a checkpoint in the Hub's format into a runtime folder for one engine.

    For `packed`: fused safetensors in `dtype`. For `flagembedding`: the files as they are, their
    pickles checked. `name` is what replies call a model that is not one of the pinned two; by
    default that of its folder. The destination is written in a temporary folder beside it and moved
    there whole, so that a broken run leaves nothing that looks finished.

    Raises:
        ConvertError: the source is refused, the destination holds something else than a runtime
            folder, or the disk fails; the message names the file, field or tensor.
        LockedError: another process is writing the destination.
    """
    destination = Path(os.path.abspath(destination))  # `.` has no name, and no folder beside it
    try:
        check_destination(source_folder, destination)
        with locked(destination), temporary(destination) as folder:
            new = folder / "new"
            new.mkdir()
            manifest = write(read_source(source_folder), new, dtype, engine, name)
            old = folder / "old"
            if destination.exists():
                destination.rename(old)
            try:
                new.rename(destination)
            except OSError:
                if old.exists():
                    old.rename(destination)
                raise
    except OSError as error:
        path = f": {error.filename}" if error.filename else ""
        raise ConvertError(f"{error.strerror or error}{path}") from None
    return manifest


def check_destination(source: Path, destination: Path) -> None:
    """Raises ConvertError: writing there would remove something that no conversion wrote."""
    for path, what in ((source, "the source"), (Path(), "the current folder")):
        if path.resolve().is_relative_to(destination.resolve()):
            raise ConvertError(f"`{destination}` is or holds {what}: choose another")
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise ConvertError(f"`{destination}` is not a folder")
    finished = (destination / MANIFEST).is_file()
    if destination.is_dir() and not finished and any(destination.iterdir()):
        raise ConvertError(f"`{destination}` is not empty and not a runtime folder")


def write(source: Source, folder: Path, dtype: str, engine: str, name: str | None) -> Manifest:
    tensors = fuse(source, read_tensors(source))
    check_tokenizer(source)
    if engine == "packed":
        write_fused(source, tensors, folder, dtype)
    else:
        copy_files(source, folder)
    manifest = describe(source, folder, engine, dtype, name)
    manifest.write(folder)
    return manifest


def write_fused(source: Source, tensors: dict[str, Tensor], folder: Path, dtype: str) -> None:
    cast = {name: tensor.to(DTYPES[dtype]).contiguous() for name, tensor in tensors.items()}
    for name, tensor in cast.items():
        if not torch.isfinite(tensor).all():
            raise ConvertError(f"`{source.weights}`: `{name}` does not fit {dtype}")
    try:
        save_file(cast, folder / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:  # the disk is full
        raise ConvertError(f"`{folder / WEIGHTS}` cannot be written: {error}") from None
    (folder / WEIGHTS).chmod(0o644)  # it comes out readable by its owner alone
    write_tokenizer(source.folder / TOKENIZER, folder / TOKENIZER)


def copy_files(source: Source, folder: Path) -> None:
    """What FlagEmbedding opens, as published.

    The tokenizer's configuration is ours: without one, transformers rebuilds the tokenizer from
    the vocabulary by a recipe of its own and leaves the rules of tokenizer.json unread.
    """
    for path in (source.folder / "config.json", *source.parts):
        shutil.copyfile(path, folder / path.name)
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")


def describe(source: Source, folder: Path, engine: str, dtype: str, name: str | None) -> Manifest:
    """The manifest of a finished folder; it claims a pin's name only if every part is pinned."""
    hashes = {path.name: File.of(path).sha256 for path in source.parts}
    pinned = next(
        (
            pin
            for pin in PINS
            if hashes.items() <= {file.name: file.sha256 for file in pin.files}.items()
        ),
        None,
    )
    return Manifest(
        layout="fused" if engine == "packed" else "hub",
        role=source.role,
        model=pinned.repo if pinned else name or source.folder.resolve().name,
        revision=pinned.revision if pinned else None,
        fingerprint=fingerprint(hashes),
        dtype=dtype if engine == "packed" else "float32",
        config=source.config,
        files={path.name: File.of(path) for path in sorted(folder.iterdir())},
    )


def read_source(folder: Path) -> Source:
    """Check `config.json` and the presence of every file.

    Raises:
        ConvertError: `auto_map`, another architecture, or a missing file.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ConvertError(f"`{folder}` has no config.json: not a checkpoint")
    raw = read_json(path)
    if "auto_map" in raw:
        raise ConvertError(f"`{path}` has `auto_map`: code from a checkpoint is never run")
    names = raw.get("architectures")
    role = ARCHITECTURES.get(str(names[0])) if isinstance(names, list) and len(names) == 1 else None
    if role is None:
        raise ConvertError(
            f"`{path}`: `architectures` must hold one of {', '.join(ARCHITECTURES)}. "
            f"Given: {short(names)}"
        )
    source = Source(folder, role, read_config(path, raw))
    labels = raw.get("id2label") or {"0": ""}
    if role == "rerank" and (not isinstance(labels, dict) or len(labels) != 1):
        raise ConvertError(
            f"`{path}`: `id2label` must have one label, as a reranker has. Given: {short(labels)}"
        )
    for part in source.parts:
        if not part.is_file():
            raise ConvertError(f"`{part}` is missing")
    return source


def read_json(path: Path) -> dict[str, Any]:
    """Raises ConvertError: not JSON, nested too deeply, or not an object."""
    try:
        content = json.loads(path.read_bytes())
    except RecursionError:
        raise ConvertError(f"`{path}` is nested too deeply") from None
    except ValueError as error:
        raise ConvertError(f"`{path}` is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConvertError(f"`{path}` is not an object")
    return content


def read_config(path: Path, raw: Mapping[str, Any]) -> Config:
    """Raises ConvertError: a field is missing, or has a value the forward pass does not follow."""
    fixed = {
        "model_type": "xlm-roberta",
        "hidden_act": "gelu",
        "type_vocab_size": 1,
        "position_embedding_type": "absolute",
    }
    for field, value in fixed.items():
        if raw.get(field, value) != value:
            raise ConvertError(
                f"`{path}`: `{field}` is {short(raw[field])}; only {value!r} is served"
            )
    pad_token_id = whole(path, raw, "pad_token_id", 0)
    width, heads = whole(path, raw, "hidden_size"), whole(path, raw, "num_attention_heads")
    if width % heads:
        raise ConvertError(f"`{path}`: `hidden_size` {width} is not a multiple of {heads} heads")
    config = Config(
        vocab_size=whole(path, raw, "vocab_size"),
        hidden_size=width,
        num_hidden_layers=whole(path, raw, "num_hidden_layers"),
        num_attention_heads=heads,
        intermediate_size=whole(path, raw, "intermediate_size"),
        max_position_embeddings=whole(path, raw, "max_position_embeddings", pad_token_id + 4),
        layer_norm_eps=epsilon(path, raw),
        bos_token_id=whole(path, raw, "bos_token_id", 0),
        pad_token_id=pad_token_id,
        eos_token_id=whole(path, raw, "eos_token_id", 0),
        unk_token_id=token_id(path.parent / TOKENIZER, "<unk>"),
    )
    if max(config.special_ids) >= config.vocab_size:
        raise ConvertError(
            f"`{path}`: ids of special tokens must be below `vocab_size` {config.vocab_size}. "
            f"Given: {max(config.special_ids)}"
        )
    return config


def whole(path: Path, raw: Mapping[str, Any], field: str, least: int = 1) -> int:
    """Raises ConvertError: the field is missing or no whole number from `least` on."""
    value = raw.get(field)
    if type(value) is not int or not least <= value <= MAX_NUMBER:
        raise ConvertError(
            f"`{path}`: `{field}` must be a whole number from {least} to {MAX_NUMBER}. "
            f"Given: {short(value)}"
        )
    return value


def epsilon(path: Path, raw: Mapping[str, Any]) -> float:
    """Raises ConvertError: not a number above zero."""
    value = raw.get("layer_norm_eps", 1e-12)  # transformers' default
    if type(value) not in (int, float) or not 0 < value < 1:
        raise ConvertError(
            f"`{path}`: `layer_norm_eps` must be above 0 and below 1. Given: {short(value)}"
        )
    return float(value)


def token_id(path: Path, token: str) -> int:
    """The id of a special token; config.json does not tell `<unk>`."""
    if not path.is_file():
        raise ConvertError(f"`{path}` is missing")
    added = read_json(path).get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and entry.get("content") == token:
            return whole(path, entry, "id", 0)
    raise ConvertError(f"`{path}` has no special token {token}")


def check_tokenizer(source: Source) -> None:
    """Raises ConvertError: tokenizer.json does not load, is too slow, or has too many tokens."""
    path = source.folder / TOKENIZER
    command = [sys.executable, "-I", probe.__file__, str(path)]
    environment = os.environ | {"RUST_BACKTRACE": "0"}
    try:
        ran = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PROBE_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ConvertError(
            f"`{path}` takes more than {PROBE_SECONDS:g} s for a short text: does a regular "
            "expression in it backtrack?"
        ) from None
    if ran.returncode:
        raise ConvertError(f"`{path}` is not a tokenizer: {ran.stdout.strip() or 'it crashes'}")
    if int(ran.stdout) > source.config.vocab_size:
        raise ConvertError(
            f"`{path}` has {ran.stdout.strip()} tokens, `vocab_size` is {source.config.vocab_size}"
        )


def read_tensors(source: Source) -> dict[str, Tensor]:
    """Every tensor of the source by its own name, heads included; pickles hold tensors only."""
    tensors = read_file(source.weights)
    if source.role == "embed":
        for name in (SPARSE_HEAD, COLBERT_HEAD):
            head = read_file(source.folder / name)
            tensors |= {f"{Path(name).stem}.{key}": value for key, value in head.items()}
    return tensors


def read_file(path: Path) -> dict[str, Tensor]:
    """Raises ConvertError: the file is damaged, or a pickle that holds more than tensors."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # of what a file may hold but ours do not
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ConvertError(f"`{path}` is not a safetensors file: {one_line(error)}") from None
    except pickle.UnpicklingError:
        raise ConvertError(
            f"`{path}` is a pickle that is damaged or holds more than tensors: not run"
        ) from None
    except Exception as error:  # whatever a damaged file makes of either library
        kind = type(error).__name__
        raise ConvertError(f"`{path}` is damaged: {kind}: {one_line(error)}") from None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise ConvertError(f"`{path}` is not a dictionary of tensors")
    return content


def source_shapes(source: Source) -> dict[str, tuple[int, ...]]:
    """Every tensor the source must hold, by its published name."""
    config, p = source.config, source.prefix
    d, f = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        f"{p}embeddings.word_embeddings.weight": (config.vocab_size, d),
        f"{p}embeddings.position_embeddings.weight": (config.max_position_embeddings, d),
        f"{p}embeddings.token_type_embeddings.weight": (1, d),
        **norm(f"{p}embeddings.LayerNorm", d),
    }
    for i in range(config.num_hidden_layers):
        layer = f"{p}encoder.layer.{i}."
        for part in ("query", "key", "value"):
            shapes |= linear(f"{layer}attention.self.{part}", d, d)
        shapes |= linear(f"{layer}attention.output.dense", d, d)
        shapes |= norm(f"{layer}attention.output.LayerNorm", d)
        shapes |= linear(f"{layer}intermediate.dense", f, d)
        shapes |= linear(f"{layer}output.dense", d, f)
        shapes |= norm(f"{layer}output.LayerNorm", d)
    if source.role == "embed":
        return shapes | linear("sparse_linear", 1, d) | linear("colbert_linear", d, d)
    return shapes | linear("classifier.dense", d, d) | linear("classifier.out_proj", 1, d)


def linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def check_tensors(source: Source, tensors: Mapping[str, Tensor]) -> None:
    """Raises ConvertError: a tensor is missing, unknown or misshapen; the message names it."""
    if source.config.num_hidden_layers > len(
        tensors
    ):  # before there is a name for each that is missing
        raise ConvertError(
            f"`{source.weights}` has {len(tensors)} tensors, too few for `num_hidden_layers` "
            f"{source.config.num_hidden_layers}"
        )
    expected = source_shapes(source)
    # Not used by any output: bge-m3's pooler, and a counter that old exports carry.
    unused = {f"{source.prefix}embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}
    path = source.weights
    if missing := sorted(expected.keys() - tensors.keys()):
        raise ConvertError(f"`{path}` lacks {len(missing)} tensors, `{missing[0]}` first")
    if extra := sorted(tensors.keys() - expected.keys() - unused):
        raise ConvertError(f"`{path}` has {len(extra)} unknown tensors, {quoted(extra[0])} first")
    for name, shape in expected.items():
        tensor = tensors[name]
        if not is_plain(tensor):
            raise ConvertError(f"`{path}`: `{name}` is not a plain tensor of floats")
        if tuple(tensor.shape) != shape:
            raise ConvertError(f"`{path}`: `{name}` is {list(tensor.shape)}, not {list(shape)}")
        if not torch.isfinite(tensor).all():
            raise ConvertError(f"`{path}`: `{name}` has values that are not finite")


def is_plain(tensor: Tensor) -> bool:
    """Dense, in memory, of a type that is served, and no larger than its storage."""
    return (
        tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_quantized or tensor.is_neg())
        and tensor.device.type == "cpu"
        and tensor.dtype in SERVED_DTYPES
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def fuse(source: Source, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The runtime's tensors from the source's; sums are taken in fp32."""
    check_tensors(source, tensors)
    p = source.prefix
    fused = {
        "encoder.word": tensors[f"{p}embeddings.word_embeddings.weight"],
        "encoder.position": (
            tensors[f"{p}embeddings.position_embeddings.weight"].float()
            + tensors[f"{p}embeddings.token_type_embeddings.weight"].float()
        ),
    }
    renamed = {"encoder.norm": f"{p}embeddings.LayerNorm"}
    for i in range(source.config.num_hidden_layers):
        ours, theirs = f"encoder.layers.{i}.", f"{p}encoder.layer.{i}."
        for kind in ("weight", "bias"):
            fused[f"{ours}qkv.{kind}"] = torch.cat(
                [tensors[f"{theirs}attention.self.{x}.{kind}"] for x in ("query", "key", "value")]
            )
        renamed |= {
            f"{ours}out": f"{theirs}attention.output.dense",
            f"{ours}norm1": f"{theirs}attention.output.LayerNorm",
            f"{ours}up": f"{theirs}intermediate.dense",
            f"{ours}down": f"{theirs}output.dense",
            f"{ours}norm2": f"{theirs}output.LayerNorm",
        }
    if source.role == "embed":
        renamed |= {"head.sparse": "sparse_linear", "head.colbert": "colbert_linear"}
    else:
        renamed |= {"head.dense": "classifier.dense", "head.out": "classifier.out_proj"}
    for ours, theirs in renamed.items():
        for kind in ("weight", "bias"):
            fused[f"{ours}.{kind}"] = tensors[f"{theirs}.{kind}"]
    if {name: tuple(t.shape) for name, t in fused.items()} != expected_shapes(
        source.config, source.role
    ):
        raise ConvertError("the weight map and the model disagree. This is a bug.")
    return fused


def write_tokenizer(source: Path, destination: Path) -> None:
    """Copy a tokenizer without its truncation and padding, in one canonical form.

    The two published files differ in that alone; written so, they are equal byte for byte, and
    the worker sees that it can share one.
    """
    content = read_json(source)
    content["truncation"] = content["padding"] = None
    destination.write_text(
        json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8"
    )
