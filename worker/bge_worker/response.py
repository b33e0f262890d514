"""Results → the JSON-safe reply, its size known before it is built.

Floats are rounded to 7 decimals and take at most `FLOAT_BYTES` each; base64 takes four bytes for
three. `check_size` adds these up from token counts alone, before anything is computed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from .batcher import Finished
from .engine import Embedding, ModelInfo
from .errors import TooLargeError, ValidationError
from .schema import EmbedRequest, Outputs, RerankRequest, Work
from .settings import Settings
from .tokenizer import Encoded

DECIMALS = 7
FLOAT_BYTES = 12  # "-0.1234567, "
ENVELOPE_BYTES = 1024  # model, usage, timings, braces
Array = npt.NDArray[np.float32]


def admit(work: Work, encoded: Sequence[Encoded], model: ModelInfo, settings: Settings) -> None:
    """Refuse a tokenised request that breaks a limit, before it costs device time.

    Raises:
        ValidationError: a text is longer than `max_length` and `truncate` is false.
        TooLargeError: the tokens or the reply exceed a limit; says how many texts would fit.
    """
    if not work.truncate:
        _refuse_cut(work, encoded)
    _check_limit(
        work,
        "holds {total} tokens; `BGE_MAX_REQUEST_TOKENS` is {limit}",
        [len(text.ids) for text in encoded],
        settings.max_request_tokens,
    )
    if isinstance(work, EmbedRequest):
        sizes = [_embedding_bytes(work, text, model.width) for text in encoded]
    else:
        sizes = _ranking_bytes(work)
    _check_limit(
        work,
        "would make a reply of {total} bytes; `BGE_MAX_REPLY_BYTES` is {limit}",
        sizes,
        settings.max_reply_bytes - ENVELOPE_BYTES,
    )


def _refuse_cut(work: Work, encoded: Sequence[Encoded]) -> None:
    place, text = next(((i, text) for i, text in enumerate(encoded) if text.cut), (0, None))
    if text is None:
        return
    pair = isinstance(work, RerankRequest)
    raise ValidationError(
        f"`{work.field}[{place}]` has {text.full_length} tokens"
        + (" with `query` and special tokens" if pair else " with special tokens")
        + f"; `max_length` is {text.max_length} and `truncate` is false"
        + (f" (`query` may hold {text.max_length * 3 // 4})" if pair else "")
    )


def _check_limit(work: Work, what: str, parts: Sequence[int], limit: int) -> None:
    total = sum(parts)
    if total <= limit:
        return
    fit = sum(1 for so_far in accumulate(parts) if so_far <= limit)
    raise TooLargeError(
        f"`{work.field}` {what.format(total=total, limit=limit)}. "
        f"The first {fit} of {len(parts)} texts would fit"
    )


def _embedding_bytes(work: EmbedRequest, text: Encoded, width: int) -> int:
    """At most, for one text."""
    tokens = len(text.ids)
    vector = _vector_bytes(work, width) + 4
    size = 8  # its place in `truncated`
    if Outputs.DENSE in work.outputs:
        size += vector
    if Outputs.SPARSE in work.outputs:
        size += 32 + len(set(text.ids)) * (FLOAT_BYTES + 8)
    if Outputs.COLBERT in work.outputs:
        size += 64 + (
            _vector_bytes(work, (tokens - 1) * width)
            if work.encoding_format == "base64"
            else (tokens - 1) * vector
        )
    return size


def _vector_bytes(work: EmbedRequest, floats: int) -> int:
    if work.encoding_format == "float":
        return floats * FLOAT_BYTES
    return 4 * -(-floats * np.dtype(work.dtype).itemsize // 3)


def _ranking_bytes(work: RerankRequest) -> list[int]:
    """At most, for each document: a text in a reply may take more bytes than it has letters."""
    if not work.return_documents:
        return [64] * len(work.texts)
    return [96 + len(json.dumps(text, ensure_ascii=False).encode()) for text in work.texts]


def embed_reply(work: EmbedRequest, finished: Finished, model: ModelInfo) -> dict[str, Any]:
    """The reply to an embedding request, as the contract has it."""
    embeddings = [result for result in finished.results if isinstance(result, Embedding)]
    reply = _head(model)
    if Outputs.DENSE in work.outputs:
        encode = _encoder(work)
        reply["embeddings"] = [encode(e.dense) for e in embeddings if e.dense is not None]
        reply["dimensions"] = model.width
    if Outputs.SPARSE in work.outputs:
        reply["sparse_embeddings"] = [
            {"indices": e.sparse.indices.tolist(), "values": _floats(e.sparse.values)}
            for e in embeddings
            if e.sparse is not None
        ]
    if Outputs.COLBERT in work.outputs:
        reply["colbert_embeddings"] = [
            _colbert(work, e.colbert) for e in embeddings if e.colbert is not None
        ]
    return reply | _tail(finished)


def rerank_reply(work: RerankRequest, finished: Finished, model: ModelInfo) -> dict[str, Any]:
    """The reply to a rerank request: highest first, equal scores in the order given."""
    scores = np.array(finished.results, np.float64)
    if not work.raw_scores:
        scores = (1 + np.tanh(scores / 2)) / 2  # the sigmoid, without overflow
    best = np.argsort(-scores, kind="stable")[: work.top_n].tolist()
    results: list[dict[str, Any]] = [
        # Not rounded: near 0 and 1 the sigmoid packs different logits closely.
        {"index": index, "relevance_score": float(scores[index])}
        for index in best
    ]
    if work.return_documents:
        for result in results:
            result["document"] = {"text": work.texts[result["index"]]}
    return _head(model) | {"results": results} | _tail(finished)


def _head(model: ModelInfo) -> dict[str, Any]:
    return {"model": model.model, "fingerprint": model.fingerprint}


def _tail(finished: Finished) -> dict[str, Any]:
    tokens = sum(len(text.ids) for text in finished.encoded)
    timings = {name: round(value, 3) for name, value in asdict(finished.timings).items()}
    return {
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "truncated": [place for place, text in enumerate(finished.encoded) if text.cut],
        "timings_ms": timings,
    }


def _encoder(work: EmbedRequest) -> Callable[[Array], list[float] | str]:
    """One vector [D] as floats or base64."""
    return _floats if work.encoding_format == "float" else lambda array: _base64(work, array)


def _colbert(work: EmbedRequest, vectors: Array) -> object:
    if work.encoding_format == "base64":
        return {"shape": list(vectors.shape), "data": _base64(work, vectors)}
    return _floats(vectors)


def _floats(array: Array) -> list[Any]:
    # In fp64, or rounding to seven decimals would bring back fp32's own digits.
    rounded: list[Any] = np.round(array.astype(np.float64), DECIMALS).tolist()
    return rounded


def _base64(work: EmbedRequest, array: Array) -> str:
    little_endian = np.dtype(work.dtype).newbyteorder("<")
    return base64.b64encode(array.astype(little_endian).tobytes()).decode("ascii")
