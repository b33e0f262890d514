"""Read the configuration of a Hugging Face checkpoint; refuse what the forward pass lacks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from bge_worker.engine.config import Config
from bge_worker.engine.manifest import TOKENIZER

from .errors import ConvertError

MAX_INTEGER = 2**31 - 1


def read_json(path: Path) -> dict[str, Any]:
    """Raises ConvertError if the file is not a JSON object, or is nested too deeply."""
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
    """Raises ConvertError if a field is missing or has a value that the worker does not support."""
    required = {
        "model_type": "xlm-roberta",
        "hidden_act": "gelu",
        "type_vocab_size": 1,
        "position_embedding_type": "absolute",
    }
    for field, value in required.items():
        if raw.get(field, value) != value:
            raise ConvertError(
                f"`{path}`: `{field}` must be {value!r}. Given: {shortened(raw[field])}"
            )
    integer = partial(read_integer, path, raw)
    pad_token_id = integer("pad_token_id", 0)
    hidden_size, heads = integer("hidden_size"), integer("num_attention_heads")
    if hidden_size % heads:
        raise ConvertError(
            f"`{path}`: `hidden_size` must be a multiple of `num_attention_heads` {heads}. "
            f"Given: {hidden_size}"
        )
    config = Config(
        vocab_size=integer("vocab_size"),
        hidden_size=hidden_size,
        num_hidden_layers=integer("num_hidden_layers"),
        num_attention_heads=heads,
        intermediate_size=integer("intermediate_size"),
        max_position_embeddings=integer("max_position_embeddings", pad_token_id + 4),
        layer_norm_eps=read_epsilon(path, raw),
        bos_token_id=integer("bos_token_id", 0),
        pad_token_id=pad_token_id,
        eos_token_id=integer("eos_token_id", 0),
        unk_token_id=read_token_id(path.parent / TOKENIZER, "<unk>"),
    )
    if max(config.special_ids) >= config.vocab_size:
        raise ConvertError(
            f"`{path}`: ids of special tokens must be below `vocab_size` {config.vocab_size}. "
            f"Given: {max(config.special_ids)}"
        )
    return config


def read_integer(path: Path, raw: Mapping[str, Any], field: str, minimum: int = 1) -> int:
    """Raises ConvertError if the field is missing, not an integer or out of range."""
    value = raw.get(field)
    if type(value) is not int or not minimum <= value <= MAX_INTEGER:
        raise ConvertError(
            f"`{path}`: `{field}` must be an integer from {minimum} to {MAX_INTEGER}. "
            f"Given: {shortened(value)}"
        )
    return value


def read_epsilon(path: Path, raw: Mapping[str, Any]) -> float:
    """Raises ConvertError if it is not a number between 0 and 1."""
    value = raw.get("layer_norm_eps", 1e-12)  # transformers' default
    if type(value) not in (int, float) or not 0 < value < 1:
        raise ConvertError(
            f"`{path}`: `layer_norm_eps` must be above 0 and below 1. Given: {shortened(value)}"
        )
    return float(value)


def read_token_id(path: Path, token: str) -> int:
    """Return a special token's id from tokenizer.json: config.json lacks that of `<unk>`.

    Raises:
        ConvertError: the file or the token is missing.
    """
    if not path.is_file():
        raise ConvertError(f"`{path}` is missing")
    added = read_json(path).get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and entry.get("content") == token:
            return read_integer(path, entry, "id", 0)
    raise ConvertError(f"`{path}` has no special token {token}")
