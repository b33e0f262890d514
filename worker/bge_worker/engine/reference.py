"""FlagEmbedding behind the engine's interface: `BGE_ENGINE=flagembedding`, and the parity oracle.

Texts go into FlagEmbedding's own `encode` and `compute_score`; our forward pass is not used. Its
packages are not in `requirements.txt`. The runtime folder has the layout "hub":
`python -m bge_builder convert --engine flagembedding`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ..errors import StartError
from ..settings import Settings
from . import runtime
from .config import Role
from .engine import FinishedBatch, NotFiniteError
from .manifest import INT8, TOKENIZER, check_files
from .outputs import Embedding, Outputs, Result, SparseVector
from .tokenizer import Encoded, Tokenizer, open_tokenizer

INSTALL = "pip install FlagEmbedding==1.4.2 transformers==5.23.0 sentencepiece==0.2.3"


@dataclass(slots=True)
class EncodedSource(Encoded):
    """With the text or pair itself, which FlagEmbedding tokenises again."""

    source: str | tuple[str, str]
    max_length: int


class ReferenceEngine:
    """FlagEmbedding, one call at a time."""

    def __init__(self, settings: Settings) -> None:
        """Load the models.

        Raises:
            StartError: FlagEmbedding is not installed, `BGE_DTYPE` is int8, or a folder is not what
                the settings require.
        """
        if settings.dtype == INT8:
            raise StartError("`BGE_DTYPE` is int8, which `BGE_ENGINE` flagembedding does not have")
        device = runtime.choose_device(settings)
        dtype = runtime.choose_dtype(settings, device)
        folders = runtime.runtime_folders(settings, "hub")
        for folder, manifest in folders.values():
            check_files(folder, manifest)
        self._models: dict[Role, Any] = {}
        self._tokenizers = {}  # for token counts and truncation only
        for role, (folder, manifest) in folders.items():
            self._models[role] = load_model(folder, role, str(device), dtype == torch.float16)
            self._tokenizers[role] = Tokenizer(open_tokenizer(folder / TOKENIZER), manifest.config)
        self.recomputed = 0  # FlagEmbedding computes in one dtype
        self.models = {
            role: runtime.model_info(manifest) for role, (_, manifest) in folders.items()
        }
        name = str(dtype).removeprefix("torch.")
        reason = "FlagEmbedding runs the model of transformers"
        self.runtime = runtime.make_runtime(settings, device, name, "transformers", reason)

    def encode_texts(self, texts: Sequence[str | Sequence[int]], max_length: int) -> list[Encoded]:
        tokenizer = self._tokenizers["embed"]
        max_length = min(max_length, self.models["embed"].max_length)
        encoded = tokenizer.encode_texts(texts, max_length)
        sources = [text if isinstance(text, str) else tokenizer.decode(text) for text in texts]
        return [
            EncodedSource(text.ids, text.untruncated_length, source, max_length)
            for text, source in zip(encoded, sources, strict=True)
        ]

    def encode_pairs(
        self, queries: list[str], documents: Sequence[str], max_length: int
    ) -> list[Encoded]:
        max_length = min(max_length, self.models["rerank"].max_length)
        encoded = self._tokenizers["rerank"].encode_pairs(queries, documents, max_length)
        of_documents = queries if len(queries) > 1 else queries * len(documents)
        sources = zip(of_documents, documents, strict=True)
        return [
            EncodedSource(pair.ids, pair.untruncated_length, source, max_length)
            for pair, source in zip(encoded, sources, strict=True)
        ]

    def tokenizer(self, role: Role) -> Tokenizer:
        return self._tokenizers[role]

    def launch(self, outputs: Outputs, texts: Sequence[Encoded]) -> FinishedBatch:
        return FinishedBatch(self.run(outputs, texts))

    def run(self, outputs: Outputs, texts: Sequence[Encoded]) -> Sequence[Result]:
        """Return one result for each text, in order.

        FlagEmbedding takes one `max_length` per call: one call for each.
        """
        sources = cast("Sequence[EncodedSource]", texts)
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, text in enumerate(sources):
            by_length[text.max_length].append(index)
        results: dict[int, Result] = {}
        with runtime.device_errors_translated():
            for max_length, indices in by_length.items():
                batch = [sources[index].source for index in indices]
                results |= zip(indices, self._call(outputs, batch, max_length), strict=True)
        return [results[index] for index in range(len(texts))]

    def _call(
        self, outputs: Outputs, sources: Sequence[str | tuple[str, str]], max_length: int
    ) -> list[Result]:
        # A batch size above the number of texts: otherwise FlagEmbedding draws progress bars.
        options = {"max_length": max_length, "batch_size": len(sources) + 1}
        if outputs is Outputs.RELEVANCE:
            pairs = [list(pair) for pair in sources]
            logits = self._models["rerank"].compute_score(pairs, **options)
            if not np.isfinite(logits).all():
                raise NotFiniteError("a logit is not finite")
            return [float(logit) for logit in logits]
        model = self._models["embed"]
        model.model.normalize_embeddings = Outputs.RAW not in outputs
        vectors = model.encode(
            list(sources),
            return_dense=Outputs.DENSE in outputs,
            return_sparse=Outputs.SPARSE in outputs,
            return_colbert_vecs=Outputs.COLBERT in outputs,
            **options,
        )
        return [_embedding(vectors, index) for index in range(len(sources))]


def load_model(folder: Path, role: Role, device: str, half: bool) -> Any:
    """Return a BGEM3FlagModel or a FlagReranker.

    Raises StartError: FlagEmbedding is not installed.
    """
    # Read when transformers is imported: no network access, no log lines.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        from FlagEmbedding import BGEM3FlagModel, FlagReranker
    except ImportError as error:
        raise StartError(
            f"`BGE_ENGINE` is flagembedding, but {error.name} is not installed: {INSTALL}"
        ) from None
    if role == "embed":
        return BGEM3FlagModel(str(folder), use_fp16=half, devices=device)
    reranker = FlagReranker(str(folder), use_fp16=half, devices=device)
    restore_prepare_for_model(reranker.tokenizer)
    return reranker


def restore_prepare_for_model(tokenizer: Any) -> None:
    """Add `prepare_for_model`, by which FlagEmbedding joins a pair's ids, to a transformers 5
    tokenizer.

    Up to transformers 4 the tokenizer has it. Without it FlagEmbedding decodes both sides and
    encodes them again, which changes ids: it loses the word mark before `<unk>`, and a trailing one
    left by truncation. The model was trained on joined ids.
    """
    if hasattr(tokenizer, "prepare_for_model"):
        return
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id

    def prepare_for_model(
        query: list[int], document: list[int], max_length: int, **_: object
    ) -> dict[str, list[int]]:
        document_length = max_length - len(query) - 4
        ids = [bos, *query, eos, eos, *document[:document_length], eos]
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}

    tokenizer.prepare_for_model = prepare_for_model


def _embedding(vectors: dict[str, Any], index: int) -> Embedding:
    """Return one text's part of what `BGEM3FlagModel.encode` returned.

    Raises NotFiniteError: a number is not finite. (FlagEmbedding itself drops a NaN weight.)
    """
    dense, colbert = (
        None if vectors[key] is None else vectors[key][index].astype(np.float32)
        for key in ("dense_vecs", "colbert_vecs")
    )
    if not all(np.isfinite(array).all() for array in (dense, colbert) if array is not None):
        raise NotFiniteError("a vector is not finite")
    sparse = None
    if vectors["lexical_weights"] is not None:
        by_token = vectors["lexical_weights"][index]
        weights = dict(sorted((int(token), weight) for token, weight in by_token.items()))
        indices = np.array([*weights], np.int64)
        sparse = SparseVector(indices, np.array([*weights.values()], np.float32))
    return Embedding(dense, sparse, colbert)
