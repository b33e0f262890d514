"""The names by which a request may name a model."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.config import ModelInfo
from ..errors import NotServedError
from .validation import names


def model_names(model: ModelInfo, aliases: Sequence[str]) -> list[str]:
    """Return the manifest's name, its last part, and the aliases (`BGE_EMBED_ALIASES`, …)."""
    return list(dict.fromkeys((model.model, model.model.rpartition("/")[2], *aliases)))


def check_model(name: str | None, model: ModelInfo, aliases: Sequence[str]) -> None:
    """Raises NotServedError if a body names another model."""
    known = model_names(model, aliases)
    if name is not None and name not in known:
        raise NotServedError(
            f"`model` must be one of {names(known)}. Given: {names([name])}", field="model"
        )
