"""Results → native replies. Floats are rounded to 7 decimals."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..engine.config import ModelInfo
from ..engine.engine import Engine
from ..engine.heads import Array
from ..engine.outputs import Embedding, Outputs, SparseVector
from .batcher import Finished
from .requests import EmbedRequest, InferenceRequest, RerankRequest
from .vectors import DECIMALS, to_numbers


def build_reply(
    request: InferenceRequest, finished: Finished, model: ModelInfo, engine: Engine
) -> dict[str, Any]:
    """Return a `payload.NativeEmbedReply` or `NativeRerankReply`."""
    if isinstance(request, EmbedRequest):
        outputs = _embed_outputs(request, finished, model)
        if request.return_tokens:
            strings = engine.tokenizer("embed").token_strings
            outputs["tokens"] = [strings(text.ids) for text in finished.encoded]
    else:
        outputs = {"results": _ranking(request, finished)}
    tokens = sum(len(text.ids) for text in finished.encoded)
    windows = request.windows if isinstance(request, RerankRequest) else None
    truncated = [index for index, text in enumerate(finished.encoded) if text.truncated]
    return {
        "model": model.model,
        "fingerprint": model.fingerprint,
        **outputs,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "truncated": truncated if windows is None else list(windows.unread),
        "input_digest": input_digest(digested_texts(request)),
        "timings_ms": {name: round(ms, 3) for name, ms in asdict(finished.timings).items()},
    }


def _embed_outputs(request: EmbedRequest, finished: Finished, model: ModelInfo) -> dict[str, Any]:
    results = [result for result in finished.results if isinstance(result, Embedding)]
    outputs: dict[str, Any] = {}
    if Outputs.DENSE in request.outputs:
        vectors = (result.dense for result in results if result.dense is not None)
        outputs["embeddings"] = [
            to_numbers(vector, request.encoding_format, request.dtype) for vector in vectors
        ]
        outputs["dimensions"] = model.width
    if Outputs.SPARSE in request.outputs:
        weights = (result.sparse for result in results if result.sparse is not None)
        outputs["sparse_embeddings"] = [_sparse(vector) for vector in weights]
    if Outputs.COLBERT in request.outputs:
        matrices = (result.colbert for result in results if result.colbert is not None)
        outputs["colbert_embeddings"] = [_colbert(request, matrix) for matrix in matrices]
    return outputs


def _ranking(request: RerankRequest, finished: Finished) -> list[dict[str, Any]]:
    """Highest score first; equal scores in the order of the documents."""
    scores = np.array(finished.results, np.float64)
    if request.windows is not None:  # the best window of each document
        windows, scores = scores, np.full(len(request.documents), -np.inf)
        np.maximum.at(scores, request.windows.owners, windows)
    if not request.raw_scores:
        scores = (1 + np.tanh(scores / 2)) / 2  # the sigmoid, without overflow
    best = np.argsort(-scores, kind="stable")[: request.top_n].tolist()
    # Not rounded: near 0 and 1 the sigmoid maps different logits to almost equal scores.
    ranking: list[dict[str, Any]] = [
        {"index": index, "relevance_score": float(scores[index])} for index in best
    ]
    if request.return_documents:
        for result in ranking:
            result["document"] = {"text": request.documents[result["index"]]}
    return ranking


def digested_texts(request: InferenceRequest) -> Sequence[str | Sequence[int]]:
    if isinstance(request, RerankRequest):
        return [*request.queries, *request.documents]
    return request.texts


def input_digest(texts: Iterable[str | Sequence[int]]) -> str:
    """Identify the input of a reply: 16 hex digits of SHA-256.

    Each text is preceded by its length in bytes, as eight little-endian bytes. Token
    ids count as empty texts: they come in OpenAI's dialect alone, which has no digest.
    """
    sha256 = hashlib.sha256()
    for text in texts:
        data = text.encode() if isinstance(text, str) else b""
        sha256.update(len(data).to_bytes(8, "little"))
        sha256.update(data)
    return sha256.hexdigest()[:16]


def _sparse(vector: SparseVector) -> dict[str, list[Any]]:
    values = np.round(vector.values.astype(np.float64), DECIMALS)
    keep = values > 0  # rounding may make a weight zero
    return {"indices": vector.indices[keep].tolist(), "values": values[keep].tolist()}


def _colbert(request: EmbedRequest, vectors: Array) -> object:
    """vectors [t − 1, D]."""
    numbers = to_numbers(vectors, request.encoding_format, request.dtype)
    if request.encoding_format == "base64":
        packed = request.dtype in ("binary", "ubinary")
        width = -(-vectors.shape[1] // 8) if packed else vectors.shape[1]
        return {"shape": [len(vectors), width], "data": numbers}
    return numbers
