"""An engine for `bge bulk` that needs neither a model's weights nor a card.

A text's dense vector is its number of tokens, so that a mix-up of texts shows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from bge_client import Embedding, SparseVector
from bge_retrieval.bulk.engine import EngineOptions
from bge_retrieval.bulk.manifest import ModelIdentity, Options
from bge_worker.engine.tokenizer import Encoded

DIMENSIONS = 8
SPARSE = SparseVector(np.array([3], np.uint32), np.array([0.5], np.float32))


class FakeBulkEngine:
    """`Engine`, with any device. Its texts are still tokenised by the model's tokenizer."""

    def __init__(self, options: EngineOptions) -> None:
        self.device = options.device
        self.identity = ModelIdentity("fake/model", None, "f" * 16, DIMENSIONS)

    def embed(self, encoded: Sequence[Encoded], options: Options) -> list[Embedding]:
        return [
            Embedding(np.full(DIMENSIONS, len(text.ids), np.float32), SPARSE, None, False, "f" * 16)
            for text in encoded
        ]

    def probe(self) -> dict[str, Any]:
        return {}


class DyingBulkEngine(FakeBulkEngine):
    """Its process dies whenever it embeds, as by a text that fills the memory."""

    def embed(self, encoded: Sequence[Encoded], options: Options) -> list[Embedding]:
        os._exit(1)
