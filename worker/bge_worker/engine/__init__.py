"""Texts to vectors and scores on one device. Imports nothing of the other packages.

`Embedder` and `load_tokenizer` are the library (docs/engine.md).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .embedder import Embedder
    from .tokenizer import load_tokenizer

__all__ = ["Embedder", "load_tokenizer"]

_MODULES = {"Embedder": "embedder", "load_tokenizer": "tokenizer"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is used: an `Embedder` needs torch, other modules do not."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
