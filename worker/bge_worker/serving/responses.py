"""Results → the JSON-safe reply, its size known before it is built.

Floats are rounded to 7 decimals and take at most `FLOAT_BYTES` each; base64 takes four bytes for
three. `admit` adds these up from token counts alone, before anything is computed.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.engine import Embedding, ModelInfo
from ..engine.heads import SparseVector
from ..engine.tokenizer import Encoded
from ..errors import TooLargeError, ValidationError
from ..settings import Settings
from .batcher import Finished
from .requests import EmbedRequest, Outputs, RerankRequest, Work

DECIMALS = 7
FLOAT_BYTES = 12  # "-0.1234567, "
FEW_TEXTS, FEW_TOKENS = 4, 512
ENVELOPE_BYTES = 1024  # model, usage, timings, braces
Array = npt.NDArray[np.float32]


def admit(work: Work, encoded: Sequence[Encoded], model: ModelInfo, settings: Settings) -> None:
    """Refuse a request that breaks a limit, before it costs device time.

    `encoded` are its first texts, or all of them: too many tokens are refused as soon as they
    show.

    Raises:
        ValidationError: a text is longer than `max_length` and `truncate` is false.
        TooLargeError: the tokens or the reply exceed a limit; says how much would fit.
    """
    if not work.truncate:
        _refuse_cut(work, encoded)
    _check_tokens(work, [len(text.ids) for text in encoded], settings.max_request_tokens)
    if len(encoded) < len(work.texts):
        return
    if isinstance(work, EmbedRequest):
        sizes = [_embedding_bytes(work, text, model.width) for text in encoded]
    else:
        sizes = _ranking_bytes(work)
    _check_bytes(work, sizes, settings.max_reply_bytes)


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


def _check_tokens(work: Work, tokens: Sequence[int], limit: int) -> None:
    if sum(tokens) <= limit:
        return
    fit = _how_many_fit(tokens, limit)
    raise TooLargeError(
        f"`{work.field}` must hold at most {limit} tokens (`BGE_MAX_REQUEST_TOKENS`). Given: "
        f"{sum(tokens)} in the first {len(tokens)} of {len(work.texts)} texts. "
        + (f"The first {fit} would fit" if fit else "Not one would fit: lower `max_length`")
    )


def _check_bytes(work: Work, sizes: Sequence[int], limit: int) -> None:
    """`sizes` are the bytes of each text's part of the reply, at most."""
    total = ENVELOPE_BYTES + sum(sizes)
    if total <= limit:
        return
    fit = _how_many_fit(sizes, limit - ENVELOPE_BYTES)
    if isinstance(work, RerankRequest):
        help_ = f"With `top_n` {fit} it would fit" if fit else "Leave `return_documents` out"
    elif fit:
        help_ = f"The first {fit} of {len(sizes)} texts would fit"
    else:
        help_ = "Not one would fit: lower `max_length`, or ask for fewer outputs or for base64"
    raise TooLargeError(
        f"the reply to `{work.field}` must be at most {limit} bytes (`BGE_MAX_REPLY_BYTES`). "
        f"It would be {total}. {help_}"
    )


def _how_many_fit(parts: Sequence[int], limit: int) -> int:
    return sum(1 for so_far in accumulate(parts) if so_far <= limit)


def _embedding_bytes(work: EmbedRequest, text: Encoded, width: int) -> int:
    """At most, for one text."""
    tokens = len(text.ids)
    vector = _vector_bytes(work, width) + 4
    size = 72  # its place in `truncated`, and OpenAI's wrapping
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
    """At most, for each of the `top_n` results, the largest documents first."""
    sizes = [72] * len(work.texts)
    if work.return_documents:
        texts = (json.dumps(text, ensure_ascii=False) for text in work.texts)
        sizes = sorted((104 + len(text.encode()) for text in texts), reverse=True)
    return sizes[: work.top_n]


def is_small(work: Work, encoded: Sequence[Encoded]) -> bool:
    """Whether its reply takes less time to build than to hand to another thread and back."""
    few = len(work.texts) <= FEW_TEXTS and sum(len(text.ids) for text in encoded) <= FEW_TOKENS
    with_documents = isinstance(work, RerankRequest) and work.return_documents
    return few and Outputs.COLBERT not in work.outputs and not with_documents


def embed_reply(work: EmbedRequest, finished: Finished, model: ModelInfo) -> dict[str, Any]:
    """The reply to an embedding request, as the contract has it."""
    embeddings = [result for result in finished.results if isinstance(result, Embedding)]
    reply = _head(model)
    if Outputs.DENSE in work.outputs:
        encode = _encoder(work)
        reply["embeddings"] = [encode(e.dense) for e in embeddings if e.dense is not None]
        reply["dimensions"] = model.width
    if Outputs.SPARSE in work.outputs:
        reply["sparse_embeddings"] = [_sparse(e.sparse) for e in embeddings if e.sparse is not None]
    if Outputs.COLBERT in work.outputs:
        reply["colbert_embeddings"] = [
            _colbert(work, e.colbert) for e in embeddings if e.colbert is not None
        ]
    return reply | _tail(work, finished)


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
    return _head(model) | {"results": results} | _tail(work, finished)


def _head(model: ModelInfo) -> dict[str, Any]:
    return {"model": model.model, "fingerprint": model.fingerprint}


def _tail(work: Work, finished: Finished) -> dict[str, Any]:
    tokens = sum(len(text.ids) for text in finished.encoded)
    timings = {name: round(value, 3) for name, value in asdict(finished.timings).items()}
    return {
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "truncated": [place for place, text in enumerate(finished.encoded) if text.cut],
        "input_digest": input_digest(
            [work.query, *work.texts] if isinstance(work, RerankRequest) else work.texts
        ),
        "timings_ms": timings,
    }


def input_digest(texts: Iterable[str | Sequence[int]]) -> str:
    """Identify the input that a reply belongs to: 16 hex digits of SHA-256.

    Each text is preceded by its length in bytes, as eight little-endian bytes (contract). Token
    ids are left out: their one shape, OpenAI's, has no digest.
    """
    sha256 = hashlib.sha256()
    for text in texts:
        data = text.encode() if isinstance(text, str) else b""
        sha256.update(len(data).to_bytes(8, "little"))
        sha256.update(data)
    return sha256.hexdigest()[:16]


def _encoder(work: EmbedRequest) -> Callable[[Array], list[float] | str]:
    """One vector [D] as floats or base64."""
    return _floats if work.encoding_format == "float" else lambda array: _base64(work, array)


def _sparse(vector: SparseVector) -> dict[str, list[Any]]:
    values = np.round(vector.values.astype(np.float64), DECIMALS)
    kept = values > 0  # a weight may be zero only once it is rounded
    return {"indices": vector.indices[kept].tolist(), "values": values[kept].tolist()}


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
