"""FlagEmbedding behind the engine's interface."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_worker.engine.engine import load_engine
from bge_worker.engine.outputs import Outputs
from bge_worker.errors import StartError
from bge_worker.settings import EngineName
from conftest import settings_in


def test_missing_flagembedding_is_named_with_the_command_that_installs_it(
    runtimes: Callable[[EngineName], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "FlagEmbedding", None)
    settings = settings_in(runtimes("flagembedding"), engine="flagembedding")
    with pytest.raises(StartError, match="is not installed: pip install FlagEmbedding"):
        load_engine(settings)


def test_texts_of_several_lengths_share_a_micro_batch(
    runtimes: Callable[[EngineName], Path],
) -> None:
    """FlagEmbedding takes one `max_length` per call; results keep the order of the texts."""
    folder = runtimes("flagembedding")
    engine = load_engine(settings_in(folder, engine="flagembedding", rerank_model=None))
    texts = [
        engine.encode_texts([text], max_length)[0]
        for text, max_length in (("море " * 9, 8), ("суша", 16), ("закон " * 9, 8))
    ]
    together: list[Any] = list(engine.run(Outputs.DENSE, texts))
    for text, result in zip(texts, together, strict=True):
        alone: Any = engine.run(Outputs.DENSE, [text])[0]
        np.testing.assert_allclose(result.dense, alone.dense, atol=1e-5)
