"""A runtime folder → a network. Strict: no tensor missing, none unknown, no network access."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import StartError
from .attention import Attention
from .config import Config, Role
from .heads import EmbedHeads, RerankHead, embed_outputs, rerank_outputs
from .manifest import INT8, WEIGHTS, Manifest, check_files
from .model import (
    Encoder,
    Layer,
    LayerNorm,
    Linear,
    ResidualLinear,
    pack_weight,
    packs_weights,
)
from .outputs import Outputs
from .packing import Batch
from .quantization import Int8Linear, Int8ResidualLinear, Int8Weight

DTYPES = {"float16": torch.float16, "float32": torch.float32}
INT8_VERSION = "int8, version 1"  # of the vectors: for the fingerprint

Shape = tuple[int, ...]


class Network(NamedTuple):
    """An encoder and the head of its role."""

    encoder: Encoder
    head: EmbedHeads | RerankHead

    def compute(
        self, batch: Batch, outputs: Outputs, attention: Attention, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Return the outputs by name, on the device: `embed_outputs` or `rerank_outputs`."""
        cls_only = not outputs & (Outputs.SPARSE | Outputs.COLBERT)
        hidden = self.encoder(batch, attention, cls_only=cls_only, dtype=dtype)
        if isinstance(self.head, RerankHead):
            return rerank_outputs(hidden, batch, self.head)
        return embed_outputs(hidden, batch, outputs, self.head)


def encoder_products(config: Config) -> list[str]:
    """Return the names of the layers' products. An int8 folder has a `scale` for each output."""
    layers = range(config.num_hidden_layers)
    return [f"encoder.layers.{i}.{x}" for i in layers for x in ("qkv", "out", "up", "down")]


def smoothed_products(config: Config) -> list[str]:
    """Return those whose input a norm writes. An int8 folder has their `smoothing`."""
    return [name for name in encoder_products(config) if name.endswith((".qkv", ".up"))]


def stored_dtypes(config: Config, role: Role, dtype: str) -> dict[str, torch.dtype]:
    """Return the dtype of every tensor of a runtime folder, by name."""
    names = expected_shapes(config, role, dtype)
    if dtype != INT8:
        return dict.fromkeys(names, DTYPES[dtype])
    dtypes = dict.fromkeys(names, torch.float32)
    dtypes |= dict.fromkeys(("encoder.word", "encoder.position"), torch.float16)
    weights = (f"{name}.weight" for name in encoder_products(config))
    return dtypes | dict.fromkeys(weights, torch.int8)


def expected_shapes(config: Config, role: Role, dtype: str = "float32") -> dict[str, Shape]:
    """Return the shape of every tensor of a runtime folder, by name."""
    d, f = config.hidden_size, config.intermediate_size
    linears: dict[str, Shape] = {}
    norms = ["encoder.norm"]
    layers = [f"encoder.layers.{i}" for i in range(config.num_hidden_layers)]
    for layer in layers:
        linears |= {f"{layer}.qkv": (3 * d, d), f"{layer}.up": (f, d)}
        norms += [f"{layer}.norm1", f"{layer}.norm2"]
    if role == "embed":
        linears |= {"head.sparse": (1, d), "head.colbert": (d, d)}
    else:
        linears |= {"head.dense": (d, d), "head.out": (1, d)}
    shapes: dict[str, Shape] = {
        "encoder.word": (config.vocab_size, d),
        "encoder.position": (config.max_position_embeddings, d),
    }
    for layer in layers:  # their biases are folded into the norms before them
        shapes |= {f"{layer}.out.weight": (d, d), f"{layer}.down.weight": (d, f)}
    for name, (rows, columns) in linears.items():
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    for name in norms:
        shapes |= {f"{name}.weight": (d,), f"{name}.bias": (d,)}
    if dtype == INT8:
        for name in encoder_products(config):
            shapes[f"{name}.scale"] = shapes[f"{name}.weight"][:1]
        for name in smoothed_products(config):
            shapes[f"{name}.smoothing"] = shapes[f"{name}.weight"][1:]
    return shapes


def assemble(config: Config, role: Role, tensors: Mapping[str, Tensor]) -> Network:
    """Build the network from tensors with the names of `expected_shapes`."""

    def linear(name: str) -> Linear:
        return Linear(tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def product(name: str) -> Linear | Int8Linear:
        if f"{name}.scale" not in tensors:
            return linear(name)
        weight, smoothing = int8_weight(name), tensors[f"{name}.smoothing"]
        return Int8Linear(weight, smoothing, tensors[f"{name}.bias"])

    def residual(name: str) -> ResidualLinear | Int8ResidualLinear:
        if f"{name}.scale" not in tensors:
            return ResidualLinear(tensors[f"{name}.weight"])
        return Int8ResidualLinear(int8_weight(name))

    def int8_weight(name: str) -> Int8Weight:
        return Int8Weight.of(tensors[f"{name}.weight"], tensors[f"{name}.scale"])

    def norm(name: str) -> LayerNorm:
        return LayerNorm(tensors[f"{name}.weight"], tensors[f"{name}.bias"], config.layer_norm_eps)

    encoder = Encoder(
        word=tensors["encoder.word"],
        position=tensors["encoder.position"],
        norm=norm("encoder.norm"),
        layers=[
            Layer(
                num_heads=config.num_attention_heads,
                qkv=product(f"encoder.layers.{i}.qkv"),
                out=residual(f"encoder.layers.{i}.out"),
                norm1=norm(f"encoder.layers.{i}.norm1"),
                up=product(f"encoder.layers.{i}.up"),
                down=residual(f"encoder.layers.{i}.down"),
                norm2=norm(f"encoder.layers.{i}.norm2"),
            )
            for i in range(config.num_hidden_layers)
        ],
    )
    if role == "embed":
        return Network(encoder, EmbedHeads(linear("head.sparse"), linear("head.colbert")))
    return Network(encoder, RerankHead(linear("head.dense"), linear("head.out")))


def load(folder: Path, manifest: Manifest, device: torch.device, dtype: torch.dtype) -> Network:
    """Load the network of a runtime folder onto `device` in `dtype`.

    The word table, half of all weights, keeps the dtype of the file: its rows are cast when they
    are looked up. On a CPU the tensors are views of the mapped file; a cast and packing copy them.

    Raises StartError: the folder does not match its manifest; names the file or the tensor.
    """
    check_files(folder, manifest)
    tensors = _read(folder / WEIGHTS, manifest, device)
    int8 = {name for name, tensor in tensors.items() if tensor.dtype == torch.int8}
    for name in tensors.keys() - {"encoder.word"} - int8:
        in_fp32 = manifest.role == "rerank" and name.startswith("head.")  # of first tokens only
        tensors[name] = tensors[name].to(torch.float32 if in_fp32 else dtype)
    if packs_weights(device, dtype):
        for name in (*encoder_products(manifest.config), "head.colbert"):
            if f"{name}.weight" in tensors.keys() - int8:
                tensors[f"{name}.weight"] = pack_weight(tensors[f"{name}.weight"])
    return assemble(manifest.config, manifest.role, tensors)


def _read(path: Path, manifest: Manifest, device: torch.device) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            names = set(file.keys())
            # Before `expected_shapes`: a corrupt manifest may claim millions of layers.
            if manifest.config.num_hidden_layers > len(names):
                raise StartError(f"`{path}` has {len(names)} tensors, too few for its manifest")
            expected = expected_shapes(manifest.config, manifest.role, manifest.dtype)
            if mismatch := compare_names(expected.keys(), names):
                raise StartError(f"`{path}` {mismatch}")
            tensors = {name: file.get_tensor(name) for name in expected}
    except (SafetensorError, OSError) as error:
        raise StartError(f"`{path}` is not a safetensors file: {one_line(error)}") from None
    dtypes = stored_dtypes(manifest.config, manifest.role, manifest.dtype)
    for name, shape in expected.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise StartError(f"`{path}`: `{name}` is {list(tensor.shape)}, not {list(shape)}")
        if tensor.dtype != dtypes[name]:
            dtype = str(dtypes[name]).removeprefix("torch.")
            raise StartError(f"`{path}`: `{name}` is {tensor.dtype}, not {dtype}")
    return tensors


def compare_names(expected: Set[str], names: Set[str]) -> str:
    """Describe the tensors that are missing or unknown, the first by name; "" if there are none."""
    if missing := sorted(expected - names):
        return f"lacks {len(missing)} tensors, `{missing[0]}` first"
    if unknown := sorted(names - expected):
        # A name from a file, as one line of bounded length.
        first = unknown[0][:100].encode("unicode_escape").decode()
        return f"has {len(unknown)} unknown tensors, `{first}` first"
    return ""


def one_line(error: Exception) -> str:
    """Return a library's message, which may quote a file, as one line of bounded length."""
    return " ".join(str(error).split())[:200]


def fingerprint(hashes: dict[str, str], dtype: str) -> str:
    """Return 16 hex digits from the sha256 of every file that determines the model's outputs.

    Vectors in float16 and float32 may be mixed; those of int8 are apart.
    """
    lines = [f"{sha256}  {name}\n" for name, sha256 in hashes.items()]
    if dtype == INT8:
        lines.append(INT8_VERSION)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
