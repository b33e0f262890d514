"""Hugging Face checkpoint → runtime folder: checked, fused, cast, with a manifest.

    source folder → Source    configuration checked, all files present
                  → tensors   loaded without running code; names, shapes and values checked
                  → fused     the runtime's tensors (`weight_map`)
                  → folder    safetensors in one dtype, tokenizer, manifest

Anything that could run code, and any other architecture, is refused at build time, so a worker
opens safetensors only.
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
from reprlib import repr as shortened

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bge_worker.engine import checkpoint
from bge_worker.engine.checkpoint import one_line
from bge_worker.engine.config import Config, Role
from bge_worker.engine.manifest import INT8, MANIFEST, TOKENIZER, WEIGHTS, File, Manifest
from bge_worker.engine.quantization import quantize_weight
from bge_worker.engine.tokenizer import Tokenizer, open_tokenizer

from . import probe
from .errors import ConvertError, as_text
from .folders import locked, temporary
from .hub_config import read_config, read_json
from .pins import PINS
from .smoothing import smooth
from .vocabulary import CORPUS

SPARSE_HEAD, COLBERT_HEAD = "sparse_linear.pt", "colbert_linear.pt"
ARCHITECTURES: dict[str, Role] = {
    "XLMRobertaModel": "embed",
    "XLMRobertaForSequenceClassification": "rerank",
}
PREFIXES: dict[Role, str] = {"embed": "", "rerank": "roberta."}  # of the encoder's tensors
POSITION = "encoder.position"
SUPPORTED_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PROBE_SECONDS = 60.0  # to load a tokenizer and encode a few short texts
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


@dataclass(frozen=True)
class Source:
    """A source folder with a valid configuration and all its files."""

    folder: Path
    role: Role
    config: Config
    weights: Path

    @property
    def heads(self) -> list[Path]:
        names = (SPARSE_HEAD, COLBERT_HEAD) if self.role == "embed" else ()
        return [self.folder / name for name in names]

    @property
    def files(self) -> list[Path]:
        """The files that determine the model's outputs."""
        return [self.weights, *self.heads, self.folder / TOKENIZER]


def convert(
    source_folder: Path,
    destination: Path,
    *,
    dtype: str = "float16",
    engine: str = "packed",
    name: str | None = None,
) -> Manifest:
    """Convert a checkpoint in the Hub's format into a runtime folder for one engine.

    `packed` gets fused safetensors in `dtype`; `flagembedding` gets the published files, after the
    same checks. `name` is the model's name in replies, by default that of its folder; a pinned
    checkpoint keeps its repository's name. The folder is written beside the destination and then
    renamed, so an interrupted run leaves no partial folder.

    Raises:
        ConvertError: the source is refused, `flagembedding` with int8, the destination is not empty
            and not a runtime folder, or the disk fails.
        LockedError: another process is writing the destination.
    """
    if engine != "packed" and dtype == INT8:
        raise ConvertError(f"int8 runs on the engine packed alone. Given: {engine}")
    destination = Path(os.path.abspath(destination))  # `.` has neither a name nor a parent
    try:
        check_destination(source_folder, destination)
        with locked(destination), temporary(destination) as folder:
            source = read_source(source_folder)
            new = folder / "new"
            new.mkdir()
            manifest = write_runtime_folder(source, new, dtype, engine, name)
            move_into_place(new, destination, backup=folder / "old")
    except OSError as error:
        raise ConvertError(as_text(error)) from None
    return manifest


def check_destination(source: Path, destination: Path) -> None:
    """Raises ConvertError if writing there would remove anything but an earlier conversion."""
    for path, name in ((source, "the source"), (Path(), "the current folder")):
        if path.resolve().is_relative_to(destination.resolve()):
            raise ConvertError(f"`{destination}` is or contains {name}: choose another")
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise ConvertError(f"`{destination}` is not a folder")
    has_manifest = (destination / MANIFEST).is_file()
    if destination.is_dir() and not has_manifest and any(destination.iterdir()):
        raise ConvertError(f"`{destination}` is not empty and not a runtime folder")


def move_into_place(new: Path, destination: Path, backup: Path) -> None:
    """Rename `new` to `destination`; if that fails, restore what was there."""
    if destination.exists():
        destination.rename(backup)
    try:
        new.rename(destination)
    except OSError:
        if backup.exists():
            backup.rename(destination)
        raise


def write_runtime_folder(
    source: Source, folder: Path, dtype: str, engine: str, name: str | None
) -> Manifest:
    tensors = read_tensors(source)
    check_tensors(source, tensors)
    check_tokenizer(source)
    if engine == "packed":
        write_tokenizer(source.folder / TOKENIZER, folder / TOKENIZER)
        fused = fuse(source, tensors)
        if dtype == INT8:
            quantize(source, fused, folder / TOKENIZER)
        write_weights(source, fused, folder / WEIGHTS, dtype)
    else:
        copy_files(source, folder)
    manifest = make_manifest(source, folder, dtype, engine, name)
    manifest.write(folder)
    return manifest


def write_weights(source: Source, tensors: dict[str, Tensor], path: Path, dtype: str) -> None:
    cast = {}
    dtypes = checkpoint.stored_dtypes(source.config, source.role, dtype)
    for name, tensor in tensors.items():
        cast[name] = tensor.to(dtypes[name]).contiguous()
        if not torch.isfinite(cast[name]).all():
            kind = str(dtypes[name]).removeprefix("torch.")
            raise ConvertError(f"`{source.weights}`: `{name}` exceeds the range of {kind}")
    try:
        save_file(cast, path, metadata={"format": "pt"})
    except SafetensorError as error:  # for example a full disk
        raise ConvertError(f"`{path}` cannot be written: {error}") from None
    path.chmod(0o644)  # save_file makes it readable by its owner only


def quantize(source: Source, tensors: dict[str, Tensor], tokenizer: Path) -> None:
    """Replace the weights of products by int8 ones with a scale for each output.

    Outlier channels, measured on the shipped texts, are smoothed first.
    """
    texts = [json.loads(line)["text"] for line in CORPUS.read_text("utf-8").splitlines()]
    encoder = Tokenizer(open_tokenizer(tokenizer), source.config)
    sequences = [text.ids for text in encoder.encode_texts(texts, source.config.max_length)]
    smooth(source.config, source.role, tensors, sequences)
    for name in checkpoint.encoder_products(source.config):
        weight, scale = quantize_weight(tensors[f"{name}.weight"])
        tensors |= {f"{name}.weight": weight, f"{name}.scale": scale}


def copy_files(source: Source, folder: Path) -> None:
    """Copy the published files that FlagEmbedding opens, with a tokenizer_config.json of our own.

    Without that, transformers rebuilds the tokenizer from the vocabulary and ignores the rules of
    tokenizer.json.
    """
    for path in (source.folder / "config.json", *source.files):
        shutil.copyfile(path, folder / path.name)
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")


def make_manifest(
    source: Source, folder: Path, dtype: str, engine: str, name: str | None
) -> Manifest:
    """Describe a finished folder. It gets a pin's name only if every source file is pinned."""
    hashes = {path.name: File.of(path).sha256 for path in source.files}
    pin = next((pin for pin in PINS if hashes.items() <= pin.hashes.items()), None)
    return Manifest(
        layout="fused" if engine == "packed" else "hub",
        role=source.role,
        model=pin.repo if pin else name or source.folder.resolve().name,
        revision=pin.revision if pin else None,
        fingerprint=checkpoint.fingerprint(hashes, dtype if engine == "packed" else ""),
        dtype=dtype if engine == "packed" else "float32",
        config=source.config,
        files={path.name: File.of(path) for path in sorted(folder.iterdir())},
    )


def read_source(folder: Path) -> Source:
    """Check the configuration, and that every file exists.

    Raises:
        ConvertError: `auto_map`, another architecture, an invalid field or a missing file.
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
            f"Given: {shortened(names)}"
        )
    config = read_config(path, raw)
    labels = raw.get("id2label") or {"0": ""}
    if role == "rerank" and (not isinstance(labels, dict) or len(labels) != 1):
        raise ConvertError(
            f"`{path}`: a reranker's `id2label` must have one label. Given: {shortened(labels)}"
        )
    source = Source(folder, role, config, find_weights(folder))
    for file in source.files:
        if not file.is_file():
            raise ConvertError(f"`{file}` is missing")
    return source


def find_weights(folder: Path) -> Path:
    """Raises ConvertError if there is no file of weights."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise ConvertError(f"`{folder}` has neither model.safetensors nor pytorch_model.bin")


def check_tokenizer(source: Source) -> None:
    """Raises ConvertError if tokenizer.json does not load, is too slow or has too many tokens.

    `probe.py` runs in a process of its own, which a crash or an endless search cannot outlive.
    """
    path = source.folder / TOKENIZER
    command = [sys.executable, "-I", probe.__file__, str(path)]
    environment = os.environ | {"RUST_BACKTRACE": "0"}
    try:
        completed = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PROBE_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ConvertError(
            f"`{path}` takes more than {PROBE_SECONDS:g} s for a short text: a regular expression "
            "in it may backtrack"
        ) from None
    output = completed.stdout.strip()
    if completed.returncode:
        raise ConvertError(f"`{path}` is not a tokenizer: {output or 'it crashes'}")
    if int(output) > source.config.vocab_size:
        raise ConvertError(
            f"`{path}` has {output} tokens; `vocab_size` is {source.config.vocab_size}"
        )


def read_tensors(source: Source) -> dict[str, Tensor]:
    """Return every tensor by its published name; a head's with the name of its file."""
    tensors = read_tensor_file(source.weights)
    for path in source.heads:
        head = read_tensor_file(path)
        tensors |= {f"{path.stem}.{name}": tensor for name, tensor in head.items()}
    return tensors


def read_tensor_file(path: Path) -> dict[str, Tensor]:
    """Raises ConvertError if the file is damaged, or a pickle that contains more than tensors."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # of deprecated kinds, refused later
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ConvertError(f"`{path}` is not a safetensors file: {one_line(error)}") from None
    except pickle.UnpicklingError:
        raise ConvertError(
            f"`{path}` is a pickle that is damaged or contains more than tensors: not run"
        ) from None
    except Exception as error:  # either library raises many types for a damaged file
        kind = type(error).__name__
        raise ConvertError(f"`{path}` is damaged: {kind}: {one_line(error)}") from None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise ConvertError(f"`{path}` is not a dictionary of tensors")
    return content


def weight_map(config: Config, role: Role) -> dict[str, list[str]]:
    """Return the published tensors that make each tensor of a runtime folder.

    Several are concatenated (query, key and value to qkv [3D, D]), except for `POSITION`, where
    the only token-type row is added to every position.
    """
    embeddings = f"{PREFIXES[role]}embeddings"
    modules = {"encoder.norm": [f"{embeddings}.LayerNorm"]}
    for i in range(config.num_hidden_layers):
        fused, layer = f"encoder.layers.{i}", f"{PREFIXES[role]}encoder.layer.{i}"
        modules |= {
            f"{fused}.qkv": [f"{layer}.attention.self.{x}" for x in ("query", "key", "value")],
            f"{fused}.out": [f"{layer}.attention.output.dense"],
            f"{fused}.norm1": [f"{layer}.attention.output.LayerNorm"],
            f"{fused}.up": [f"{layer}.intermediate.dense"],
            f"{fused}.down": [f"{layer}.output.dense"],
            f"{fused}.norm2": [f"{layer}.output.LayerNorm"],
        }
    if role == "embed":
        modules |= {"head.sparse": ["sparse_linear"], "head.colbert": ["colbert_linear"]}
    else:
        modules |= {"head.dense": ["classifier.dense"], "head.out": ["classifier.out_proj"]}
    names = {
        "encoder.word": [f"{embeddings}.word_embeddings.weight"],
        POSITION: [f"{embeddings}.{x}_embeddings.weight" for x in ("position", "token_type")],
    }
    for module, published in modules.items():
        for kind in ("weight", "bias"):
            names[f"{module}.{kind}"] = [f"{name}.{kind}" for name in published]
    return names


def source_shapes(config: Config, role: Role) -> dict[str, checkpoint.Shape]:
    """Return the shape of every tensor that the source must contain, by published name."""
    fused_shapes = checkpoint.expected_shapes(config, role)
    shapes: dict[str, checkpoint.Shape] = {}
    for fused, names in weight_map(config, role).items():
        rows, *columns = fused_shapes.get(fused, (config.hidden_size,))  # a folded bias
        if fused == POSITION:
            shapes |= {names[0]: (rows, *columns), names[1]: (1, *columns)}
        else:
            shapes |= {name: (rows // len(names), *columns) for name in names}
    return shapes


def check_tensors(source: Source, tensors: Mapping[str, Tensor]) -> None:
    """Raises ConvertError if a tensor is missing, unknown or invalid; names the first."""
    path, config = source.weights, source.config
    # Before `source_shapes`: a corrupt configuration may claim billions of layers.
    if config.num_hidden_layers > len(tensors):
        raise ConvertError(
            f"`{path}` has {len(tensors)} tensors, too few for `num_hidden_layers` "
            f"{config.num_hidden_layers}"
        )
    expected = source_shapes(config, source.role)
    # No output uses bge-m3's pooler, nor the position ids that old exports contain.
    position_ids = f"{PREFIXES[source.role]}embeddings.position_ids"
    unused = {position_ids, "pooler.dense.weight", "pooler.dense.bias"}
    if mismatch := checkpoint.compare_names(expected.keys(), tensors.keys() - unused):
        raise ConvertError(f"`{path}` {mismatch}")
    for name, shape in expected.items():
        tensor = tensors[name]
        if not is_plain(tensor):
            raise ConvertError(f"`{path}`: `{name}` is not a plain tensor of floats")
        if tuple(tensor.shape) != shape:
            raise ConvertError(f"`{path}`: `{name}` is {list(tensor.shape)}, not {list(shape)}")
        if not torch.isfinite(tensor).all():
            raise ConvertError(f"`{path}`: `{name}` has values that are not finite")


def is_plain(tensor: Tensor) -> bool:
    """Whether it is dense, in memory, of a supported dtype and no larger than its storage."""
    return (
        tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_quantized or tensor.is_neg())
        and tensor.device.type == "cpu"
        and tensor.dtype in SUPPORTED_DTYPES
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def fuse(source: Source, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a runtime folder."""
    fused = {}
    for name, published in weight_map(source.config, source.role).items():
        parts = [tensors[part] for part in published]
        if name == POSITION:
            fused[name] = parts[0].float() + parts[1].float()
        else:
            fused[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    fold_biases(fused, source.config.num_hidden_layers)
    return fused


def fold_biases(fused: dict[str, Tensor], num_layers: int) -> None:
    """Move the biases of `out` and `down` into the norm before each.

    That norm's output is what `out` or `down` is added to: with the bias in it already, the worker
    adds in place, in one pass over memory less. `qkv` or `up`, which multiplies the same output, is
    corrected by its product with the bias.
    """
    norm = "encoder.norm"
    for layer in (f"encoder.layers.{i}" for i in range(num_layers)):
        for product, reader, next_norm in (("out", "qkv", "norm1"), ("down", "up", "norm2")):
            bias = fused.pop(f"{layer}.{product}.bias").double()
            weight, reader_bias = (fused[f"{layer}.{reader}.{x}"] for x in ("weight", "bias"))
            fused[f"{norm}.bias"] = fused[f"{norm}.bias"].double() + bias
            fused[f"{layer}.{reader}.bias"] = reader_bias.double() - weight.double() @ bias
            norm = f"{layer}.{next_norm}"


def write_tokenizer(source: Path, destination: Path) -> None:
    """Write a tokenizer without truncation and padding, in one canonical form.

    The two published files differ only in those. Written like this they are equal byte for byte,
    so the worker loads one tokenizer for both models.
    """
    content = read_json(source)
    content["truncation"] = content["padding"] = None
    destination.write_text(
        json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8"
    )
