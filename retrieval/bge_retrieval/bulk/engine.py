"""The engine in this process. The only module of retrieval that imports the worker's engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from bge_client import ConfigurationError, Probe, SparseVector, Usage
from bge_client.providers.probe import TEXTS
from bge_client.results import EmbedResult

from .manifest import ModelIdentity, Options

if TYPE_CHECKING:
    from bge_worker.engine.outputs import Embedding
    from bge_worker.engine.tokenizer import Encoded, Tokenizer
    from bge_worker.errors import WorkerError

DEVICE_FAILED = 70  # exit code of a process whose device has failed


@dataclass(frozen=True)
class EngineOptions:
    """The runtime `folder` of the model on every node, and how it runs. `threads` on a CPU."""

    folder: str
    device: str = "auto"
    threads: int | None = None


class Engine:
    """One engine. `identity` has no probe."""

    def __init__(self, options: EngineOptions) -> None:
        """Load the model.

        Raises:
            ConfigurationError: the folder or the device is not usable.
        """
        from bge_worker.process import prepare_process

        prepare_process()  # before torch is imported

        import torch

        from bge_worker.engine import Embedder
        from bge_worker.errors import StartError

        if options.threads is not None:
            torch.set_num_threads(options.threads)
        try:
            self._embedder = Embedder.load(options.folder, device=options.device)  # type: ignore[arg-type]
        except StartError as error:
            raise ConfigurationError(str(error)) from None
        info = self._embedder.info
        self.device = self._embedder.runtime.device
        self.identity = ModelIdentity(info.model, info.revision, info.fingerprint, info.width)

    def embed(self, encoded: Sequence[Encoded], options: Options) -> list[Embedding | WorkerError]:
        """Return the vectors of each text, or its error.

        If the device fails, the process ends: nothing would run on it any more.
        """
        from bge_worker.engine.outputs import Outputs
        from bge_worker.errors import DeviceError

        outputs = Outputs.DENSE
        outputs |= Outputs.SPARSE if options.sparse else Outputs(0)
        outputs |= Outputs.COLBERT if options.colbert else Outputs(0)
        try:
            return self._embedder.embed_encoded(encoded, outputs)
        except DeviceError:
            os._exit(DEVICE_FAILED)

    def probe(self) -> dict[str, Any]:
        """Return the probe of the model as JSON: see `Probe`."""
        embeddings = self._embedder.embed(list(TEXTS.values()), sparse=True)
        sparse = [
            SparseVector(row.sparse.indices.astype(np.uint32), row.sparse.values)
            for row in embeddings
            if row.sparse is not None
        ]
        result = EmbedResult(
            dense=np.array([row.dense for row in embeddings], np.float32),
            sparse=sparse,
            colbert=None,
            truncated=[],
            usage=Usage(),
            model=self.identity.model,
            fingerprint=self.identity.fingerprint,
            count=len(embeddings),
        )
        return Probe.of(result).as_dict()


@lru_cache(maxsize=1)
def _tokenizer(folder: str) -> Tokenizer:
    from bge_worker.engine import load_tokenizer
    from bge_worker.errors import StartError

    try:
        return load_tokenizer(folder)
    except StartError as error:
        raise ConfigurationError(str(error)) from None


def tokenize(folder: str, texts: Sequence[str], max_length: int | None) -> list[Encoded]:
    """Return the token ids of each text. The tokenizer is kept for the next call.

    Raises:
        ConfigurationError: the folder holds no model.
    """
    from bge_worker.engine.texts import MAX_LENGTH

    return _tokenizer(folder).encode_texts(texts, max_length or MAX_LENGTH)
