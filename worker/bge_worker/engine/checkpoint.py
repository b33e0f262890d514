"""A runtime folder → a network: strict, nothing missing, nothing left over, no network.

    model.safetensors    fused weights in one dtype
    tokenizer.json       as published, without truncation and padding
    manifest.json        what this is: role, source, architecture, fingerprint, size and hash
                         of the other two files

`bge_builder/convert.py` writes such a folder; a worker opens nothing else. (For FlagEmbedding it
writes the layout "hub": the published files and a manifest.) Hashing all of the weights would
cost a start more than loading them, so a start hashes 32 MiB of it, evenly spread, and checks
every name, shape and dtype; `python -m bge_builder verify` hashes every byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import StartError
from .heads import EmbedHeads, RerankHead
from .model import Config, Encoder, Layer, LayerNorm, Linear

FORMAT = 1
WEIGHTS, TOKENIZER, MANIFEST = "model.safetensors", "tokenizer.json", "manifest.json"
DTYPES = {"float16": torch.float16, "float32": torch.float32}

Role = Literal["embed", "rerank"]
Shape = tuple[int, ...]
Layout = Literal["fused", "hub"]


@dataclass(frozen=True)
class File:
    """A file of the folder: size in bytes, sha256 of all of it and of a sample (`sample_hash`)."""

    size: int
    sha256: str
    sample: str

    @classmethod
    def of(cls, path: Path) -> File:
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return cls(path.stat().st_size, sha256, sample_hash(path))


def sample_hash(path: Path) -> str:
    """sha256 of 512 chunks of 64 KiB, evenly spread; of everything, up to 32 MiB."""
    chunk = 64 * 1024
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for offset in range(0, size, max(chunk, size // 512)):
            stream.seek(offset)
            digest.update(stream.read(chunk))
    return digest.hexdigest()


@dataclass(frozen=True)
class Manifest:
    """What a runtime folder holds.

    `layout` says for which engine: "fused" for packed, "hub" for flagembedding. `fingerprint`
    names the space of the vectors: the hash of the source's weights, heads and tokenizer. Two
    folders of one fingerprint may differ in dtype; their vectors may be mixed.
    """

    layout: Layout
    role: Role
    model: str
    revision: str | None
    fingerprint: str
    dtype: str
    config: Config
    files: dict[str, File]

    def write(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(
            json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"
        )

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises StartError: no manifest, or one of another format."""
        path = folder / MANIFEST
        if not path.is_file():
            raise StartError(
                f"`{folder}` is not a runtime folder: it has no {MANIFEST}. "
                f"Make one with: python -m bge_builder convert SOURCE {folder}"
            )
        try:
            content: dict[str, Any] = json.loads(path.read_bytes())
            if content.pop("format") != FORMAT:
                raise StartError(f"`{path}` is of another format than {FORMAT}: convert again")
            content["config"] = Config(**content["config"])
            content["files"] = {name: File(**file) for name, file in content["files"].items()}
            manifest = cls(**content)
            manifest._check()
            return manifest
        except OSError as error:
            raise StartError(f"`{path}` cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StartError(f"`{path}` is not a manifest ({type(error).__name__})") from None

    def _check(self) -> None:
        """Raises ValueError: a value that no `convert` writes."""
        sizes = asdict(self.config)
        epsilon = sizes.pop("layer_norm_eps")
        known = (
            type(epsilon) is float and 0 < epsilon < 1,
            all(type(size) is int for size in sizes.values()),
            all(size >= (0 if name.endswith("_id") else 1) for name, size in sizes.items()),
            max(self.config.special_ids) < self.config.vocab_size,
            self.layout in ("fused", "hub"),
            self.role in ("embed", "rerank"),
            self.dtype in DTYPES,
            self.files.keys() >= {TOKENIZER},
            self.layout == "hub" or WEIGHTS in self.files,
        )
        if not all(known) or self.config.width % self.config.heads:
            raise ValueError


class Network(NamedTuple):
    """An encoder and the head that goes with its role."""

    encoder: Encoder
    head: EmbedHeads | RerankHead


def assemble(config: Config, role: Role, tensor: Callable[[str, Shape], Tensor]) -> Network:
    """The network, each of its tensors asked for by its name in the file and its shape."""
    d, f = config.width, config.feed_forward

    def linear(name: str, inputs: int, outputs: int) -> Linear:
        weight = tensor(f"{name}.weight", (outputs, inputs))
        return Linear(weight, tensor(f"{name}.bias", (outputs,)))

    def norm(name: str) -> LayerNorm:
        weight = tensor(f"{name}.weight", (d,))
        return LayerNorm(weight, tensor(f"{name}.bias", (d,)), config.layer_norm_eps)

    def layer(name: str) -> Layer:
        return Layer(
            heads=config.heads,
            qkv=linear(f"{name}.qkv", d, 3 * d),
            out=linear(f"{name}.out", d, d),
            norm1=norm(f"{name}.norm1"),
            up=linear(f"{name}.up", d, f),
            down=linear(f"{name}.down", f, d),
            norm2=norm(f"{name}.norm2"),
        )

    encoder = Encoder(
        word=tensor("encoder.word", (config.vocab_size, d)),
        position=tensor("encoder.position", (config.position_offset + config.positions, d)),
        norm=norm("encoder.norm"),
        layers=[layer(f"encoder.layers.{i}") for i in range(config.layers)],
    )
    head: EmbedHeads | RerankHead
    if role == "embed":
        head = EmbedHeads(linear("head.sparse", d, 1), linear("head.colbert", d, d))
    else:
        head = RerankHead(linear("head.dense", d, d), linear("head.out", d, 1))
    return Network(encoder, head)


def expected_shapes(config: Config, role: Role) -> dict[str, Shape]:
    """Every tensor that a runtime folder of this architecture holds."""
    shapes: dict[str, Shape] = {}

    def note(name: str, shape: Shape) -> Tensor:
        shapes[name] = shape
        return torch.empty(0)

    assemble(config, role, note)
    return shapes


def load(folder: Path, manifest: Manifest, device: torch.device, dtype: torch.dtype) -> Network:
    """Load the network of a runtime folder onto `device` in `dtype`.

    The word table, half of all weights, stays in the dtype of the file: rows are cast as they
    are looked up.

    On a CPU the tensors are views of the mapped file: nothing is copied unless it is cast.

    Raises:
        StartError: the folder is not what its manifest says; the message names the file or the
            tensor.
    """
    check_files(folder, manifest)
    tensors = _read(folder / WEIGHTS, manifest, device)

    def tensor(name: str, _shape: Shape) -> Tensor:
        return tensors[name] if name == "encoder.word" else tensors[name].to(dtype)

    return assemble(manifest.config, manifest.role, tensor)


def check_files(folder: Path, manifest: Manifest, *, every_byte: bool = False) -> None:
    """Compare the folder with its manifest: sizes, and hashes of samples or of every byte.

    Raises:
        StartError: a file is missing, or of another size or hash.
    """
    for name, file in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise StartError(f"`{path}` is missing")
        size = path.stat().st_size
        if size != file.size:
            raise StartError(f"`{path}` has {size} bytes; the manifest says {file.size}")
        if sample_hash(path) != file.sample or (every_byte and File.of(path) != file):
            raise StartError(f"`{path}` does not have the sha256 that the manifest says")


def _read(path: Path, manifest: Manifest, device: torch.device) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            names = set(file.keys())
            if manifest.config.layers > len(names):  # before each that is missing has a name
                raise StartError(f"`{path}` has {len(names)} tensors, too few for the manifest")
            expected = expected_shapes(manifest.config, manifest.role)
            _compare_names(path, expected, names)
            tensors = {name: file.get_tensor(name) for name in expected}
    except (SafetensorError, OSError) as error:
        raise StartError(f"`{path}` is not a safetensors file: {brief(error)}") from None
    for name, shape in expected.items():
        found = tensors[name]
        if tuple(found.shape) != shape:
            raise StartError(f"`{path}`: `{name}` is {list(found.shape)}, not {list(shape)}")
        if found.dtype != DTYPES[manifest.dtype]:
            raise StartError(f"`{path}`: `{name}` is {found.dtype}, not {manifest.dtype}")
    return tensors


def _compare_names(path: Path, expected: dict[str, Any], found: set[str]) -> None:
    """Raises StartError: `found` lacks a tensor or has one too many; the message names it."""
    if missing := sorted(expected.keys() - found):
        raise StartError(f"`{path}` lacks {len(missing)} tensors, `{missing[0]}` first")
    if extra := sorted(found - expected.keys()):
        raise StartError(f"`{path}` has {len(extra)} unknown tensors, {quoted(extra[0])} first")


def brief(error: Exception) -> str:
    """What a library says, which may quote a file, in one line of bounded length."""
    return " ".join(str(error).split())[:200]


def quoted(name: str) -> str:
    """A name from a file, in one line of bounded length."""
    return f"`{name[:100].encode('unicode_escape').decode()}`"


def fingerprint(hashes: dict[str, str]) -> str:
    """16 hex digits from the sha256 of each file that decides what the model answers."""
    lines = [f"{sha256}  {name}\n" for name, sha256 in hashes.items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
