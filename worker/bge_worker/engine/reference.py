"""FlagEmbedding behind the engine's interface: `BGE_ENGINE=flagembedding`, and the parity oracle.

Texts go into FlagEmbedding's own `encode` and `compute_score`; nothing of our forward pass is
used. Its packages are not in `requirements.txt`. The runtime folder is of layout "hub":
`python -m bge_builder convert --engine flagembedding`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import StartError
from ..serving.requests import EmbedRequest, Outputs, Work
from ..settings import Settings
from .checkpoint import Manifest, Role, check_files
from .engine import (
    CPU_BATCH_TOKENS,
    GPU_BATCH_TOKENS,
    Embedding,
    NotFiniteError,
    Result,
    Runtime,
    choose_device,
    choose_dtype,
    model_folders,
    model_info,
    out_of_memory_translated,
    read_manifest,
)
from .heads import SparseVector
from .tokenizer import Encoded, Tokenizer

if TYPE_CHECKING:
    from FlagEmbedding import BGEM3FlagModel, FlagReranker

INSTALL = "pip install FlagEmbedding==1.4.2 transformers==5.23.0 sentencepiece==0.2.3"


class ReferenceEngine:
    """FlagEmbedding itself, one call at a time."""

    def __init__(self, settings: Settings) -> None:
        """Load the models.

        Raises:
            StartError: FlagEmbedding is not installed, or a folder is not what the settings say.
        """
        device = choose_device(settings)
        half = choose_dtype(settings, device) == torch.float16
        folders = model_folders(settings)
        manifests = {role: read_manifest(path, role, "hub") for role, path in folders.items()}
        for role, manifest in manifests.items():
            check_files(folders[role], manifest)
        self._models = {
            role: load_model(folder, role, str(device), half) for role, folder in folders.items()
        }
        # Only the tokenizer of our own is used, for token counts and which texts are cut.
        self._tokenizers = {
            role: tokenizer_of(self._models[role], manifest) for role, manifest in manifests.items()
        }
        self.recomputed = 0  # it computes in the dtype of the settings and in no other
        self.models = {role: model_info(manifest) for role, manifest in manifests.items()}
        self.runtime = Runtime(
            engine="flagembedding",
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            dtype="float16" if half else "float32",
            attention="transformers",
            attention_reason="FlagEmbedding runs the model of transformers",
            max_batch_tokens=settings.max_batch_tokens
            or (GPU_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS),
        )

    def encode(self, work: Work, start: int, end: int) -> list[Encoded]:
        if isinstance(work, EmbedRequest):
            return self._tokenizers["embed"].encode_texts(work.texts[start:end], work.max_length)
        return self._tokenizers["rerank"].encode_pairs(
            work.query, work.texts[start:end], work.max_length
        )

    def run(self, outputs: Outputs, texts: Sequence[Encoded]) -> Sequence[Result]:
        """As `Engine.run`. FlagEmbedding takes one `max_length` a call: one call for each."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for place, text in enumerate(texts):
            by_length[text.max_length].append(place)
        results: dict[int, Result] = {}
        with out_of_memory_translated():
            for max_length, places in by_length.items():
                sources = [texts[place].source for place in places]
                results |= zip(places, self._call(outputs, sources, max_length), strict=True)
        return [results[place] for place in range(len(texts))]

    def _call(
        self, outputs: Outputs, sources: Sequence[str | tuple[str, str]], max_length: int
    ) -> list[Result]:
        # One more than there are texts, or FlagEmbedding draws progress bars.
        options = {"max_length": max_length, "batch_size": len(sources) + 1}
        if outputs is Outputs.RELEVANCE:
            logits = self._models["rerank"].compute_score(
                [list(pair) for pair in sources], **options
            )
            if not np.isfinite(logits).all():
                raise NotFiniteError("a logit is not finite")
            return [float(logit) for logit in logits]
        answer = self._models["embed"].encode(
            list(sources),
            return_dense=Outputs.DENSE in outputs,
            return_sparse=Outputs.SPARSE in outputs,
            return_colbert_vecs=Outputs.COLBERT in outputs,
            **options,
        )
        return [_embedding(answer, place) for place in range(len(sources))]


def load_model(folder: Path, role: Role, device: str, half: bool) -> BGEM3FlagModel | FlagReranker:
    """Raises StartError: FlagEmbedding is not installed."""
    # Read at import: a worker never goes to the network, and logs nothing of its own accord.
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
    """Give a transformers 5 tokenizer back the method FlagEmbedding joins a pair's ids with.

    FlagEmbedding calls `prepare_for_model` where the tokenizer has one, as up to transformers 4;
    for version 5 it decodes both sides and encodes them again, which changes ids: it loses the
    word mark before `<unk>`, and a trailing one that a cut left. The model was trained on joined
    ids.
    """
    if hasattr(tokenizer, "prepare_for_model"):
        return
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id

    def prepare_for_model(
        query: list[int], document: list[int], max_length: int, **_: object
    ) -> dict[str, list[int]]:
        room = max_length - len(query) - 4
        ids = [bos, *query, eos, eos, *document[:room], eos]
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}

    tokenizer.prepare_for_model = prepare_for_model


def tokenizer_of(model: BGEM3FlagModel | FlagReranker, manifest: Manifest) -> Tokenizer:
    """The very tokenizer FlagEmbedding uses, read by our rules.

    A copy: FlagEmbedding switches truncation on and off on its own while it encodes.
    """
    fast = type(model.tokenizer.backend_tokenizer).from_str(
        model.tokenizer.backend_tokenizer.to_str()
    )
    fast.no_truncation()
    fast.no_padding()
    return Tokenizer(fast, manifest.config)


def _embedding(answer: dict[str, Any], place: int) -> Embedding:
    """One text's part of what `BGEM3FlagModel.encode` returned.

    Raises:
        NotFiniteError: a number is not finite. (A NaN among lexical weights FlagEmbedding drops.)
    """
    dense, weights, colbert = (
        None if answer[key] is None else answer[key][place]
        for key in ("dense_vecs", "lexical_weights", "colbert_vecs")
    )
    for vectors in (dense, colbert):
        if vectors is not None and not np.isfinite(vectors).all():
            raise NotFiniteError("a vector is not finite")
    sparse = None
    if weights is not None:
        by_id = sorted((int(token), weight) for token, weight in weights.items())
        sparse = SparseVector(
            np.array([token for token, _ in by_id], np.int64),
            np.array([weight for _, weight in by_id], np.float32),
        )
    return Embedding(
        None if dense is None else dense.astype(np.float32),
        sparse,
        None if colbert is None else colbert.astype(np.float32),
    )
