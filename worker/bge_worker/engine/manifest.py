"""What a runtime folder holds. Imports no torch: a folder is described without loading it.

    model.safetensors    fused weights in one dtype, some biases folded
    tokenizer.json       as published, without truncation and padding
    manifest.json        role, source, architecture, fingerprint; size and hashes of the other files

`bge_builder/convert.py` writes such a folder, and a worker opens nothing else. (For FlagEmbedding
the layout is "hub": the published files and a manifest.) Hashing all weights would take longer than
loading them, so a start hashes 32 MiB, evenly spread, and checks every name, shape and dtype;
`python -m bge_builder verify` hashes every byte.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import StartError
from ..settings import EngineName
from .config import Config, Role

FORMAT = 3
WEIGHTS, TOKENIZER, MANIFEST = "model.safetensors", "tokenizer.json", "manifest.json"
INT8 = "int8"  # products in int8; tables in float16, everything else in float32
DTYPES = ("float16", "float32", INT8)
SAMPLE_CHUNKS, CHUNK_BYTES = 512, 64 * 1024

Layout = Literal["fused", "hub"]
ENGINES: dict[Layout, EngineName] = {"fused": "packed", "hub": "flagembedding"}


@dataclass(frozen=True)
class File:
    """Size in bytes, sha256 of the whole file and of a sample (`sample_hash`)."""

    size: int
    sha256: str
    sample: str

    @classmethod
    def of(cls, path: Path) -> File:
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return cls(path.stat().st_size, sha256, sample_hash(path))


def sample_hash(path: Path) -> str:
    """sha256 of 512 chunks of 64 KiB, evenly spread; of the whole file up to 32 MiB."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for offset in range(0, size, max(CHUNK_BYTES, size // SAMPLE_CHUNKS)):
            stream.seek(offset)
            digest.update(stream.read(CHUNK_BYTES))
    return digest.hexdigest()


@dataclass(frozen=True)
class Manifest:
    """What a runtime folder holds.

    `layout` tells the engine (`ENGINES`). `fingerprint` identifies the vector space: the hash of
    the source's weights, heads and tokenizer. Folders with one fingerprint may differ in dtype;
    their vectors may be mixed.
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
        """Raises StartError if there is no valid manifest of this format."""
        path = folder / MANIFEST
        if not path.is_file():
            raise StartError(
                f"`{folder}` is not a runtime folder: it has no {MANIFEST}. "
                "`make serve` builds the miniature's; `python -m bge_builder convert` makes others"
            )
        try:
            content: dict[str, Any] = json.loads(path.read_bytes())
            if content.pop("format") != FORMAT:
                raise StartError(f"`{path}` has another format than {FORMAT}: convert again")
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
        """Raises ValueError for a value that `convert` never writes."""
        sizes = asdict(self.config)
        epsilon = sizes.pop("layer_norm_eps")
        conditions = (
            type(epsilon) is float and 0 < epsilon < 1,
            all(type(size) is int for size in sizes.values()),
            all(size >= (0 if name.endswith("_id") else 1) for name, size in sizes.items()),
            max(self.config.special_ids) < self.config.vocab_size,
            self.config.max_length >= 1,
            self.layout in ENGINES,
            self.role in ("embed", "rerank"),
            self.dtype in DTYPES,
            self.files.keys() >= {TOKENIZER},
            self.layout == "hub" or WEIGHTS in self.files,
        )
        if not all(conditions) or self.config.hidden_size % self.config.num_attention_heads:
            raise ValueError


def check_files(folder: Path, manifest: Manifest, *, every_byte: bool = False) -> None:
    """Compare the folder with its manifest: sizes, and hashes of samples or of every byte.

    Raises StartError: a file is missing, or has another size or hash.
    """
    for name, file in manifest.files.items():
        check_file(folder / name, file, every_byte=every_byte)


def check_file(path: Path, file: File, *, every_byte: bool = False) -> None:
    """Compare one file with its entry in the manifest. Raises as `check_files`."""
    if not path.is_file():
        raise StartError(f"`{path}` is missing")
    size = path.stat().st_size
    if size != file.size:
        raise StartError(f"`{path}` has {size} bytes; its manifest says {file.size}")
    if sample_hash(path) != file.sample or (every_byte and File.of(path) != file):
        raise StartError(f"`{path}` does not have the sha256 of its manifest")
