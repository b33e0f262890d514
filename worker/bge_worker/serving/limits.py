"""Limits on tokens, checked after each slice of a request, and on bytes, checked after the last.

A request is computed from its first slice on: one that is refused later has cost device time.

A float of a reply takes at most `FLOAT_BYTES`, base64 four bytes for three: so token counts bound
the size of a reply before it is computed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from ..engine.config import ModelInfo, Role
from ..engine.outputs import Outputs
from ..errors import TooLargeError, ValidationError
from ..settings import Settings
from .requests import EmbedRequest, InferenceRequest, RerankRequest

if TYPE_CHECKING:
    from ..engine.tokenizer import Encoded

FLOAT_BYTES = 12  # "-0.1234567, "
INTEGER_BYTES = 5  # "-128,"
TOKEN_BYTES = 72  # of a token in quotes: SentencePiece's pieces have at most 16 characters
# Of one dimension.
DTYPE_BITS = {"float32": 32, "float16": 16, "int8": 8, "uint8": 8, "binary": 1, "ubinary": 1}
ENVELOPE_BYTES = 1024  # model, usage, timings, braces
RESULT_BYTES = 72  # an index in `truncated`, and OpenAI's wrapping


@dataclass(frozen=True)
class Limits:
    models: Mapping[Role, ModelInfo]
    settings: Settings

    def check(self, request: InferenceRequest, encoded: Sequence[Encoded]) -> None:
        """Refuse a request that exceeds a limit.

        `encoded` are its first texts, or all of them: too many tokens are refused as soon as they
        are counted.

        Raises:
            ValidationError: a text is longer than `max_length` and `truncate` is false.
            TooLargeError: the tokens or the reply exceed a limit; says how much would fit.
        """
        model = self.models[request.role]
        if not request.truncate:
            _check_truncation(request, encoded, min(request.max_length, model.max_length))
        tokens = [len(text.ids) for text in encoded]
        _check_tokens(request, tokens, self.settings.max_request_tokens)
        if len(encoded) < len(request.texts):
            return
        if isinstance(request, EmbedRequest):
            sizes = [_embedding_bytes(request, text, model.width) for text in encoded]
        else:
            sizes = _ranking_bytes(request)
        _check_bytes(request, sizes, self.settings.max_reply_bytes)


def _check_truncation(
    request: InferenceRequest, encoded: Sequence[Encoded], max_length: int
) -> None:
    index = next((index for index, text in enumerate(encoded) if text.truncated), None)
    if index is None:
        return
    is_pair = isinstance(request, RerankRequest)
    raise ValidationError(
        f"`{request.field}[{index}]` has {encoded[index].untruncated_length} tokens"
        + (" with `query` and special tokens" if is_pair else " with special tokens")
        + f"; `max_length` is {max_length} and `truncate` is false"
        + (f" (`query` may hold {max_length * 3 // 4})" if is_pair else ""),
        field=request.field,
        index=index,
        limit=max_length,
    )


def _check_tokens(request: InferenceRequest, tokens: Sequence[int], limit: int) -> None:
    if sum(tokens) <= limit:
        return
    fit = _count_that_fit(tokens, limit)
    raise TooLargeError(
        f"`{request.field}` must hold at most {limit} tokens (`BGE_MAX_REQUEST_TOKENS`). Given: "
        f"{sum(tokens)} in the first {len(tokens)} of {len(request.texts)} texts. "
        + (f"The first {fit} would fit" if fit else "Not one would fit: lower `max_length`"),
        field=request.field,
        limit=limit,
    )


def _check_bytes(request: InferenceRequest, sizes: Sequence[int], limit: int) -> None:
    """`sizes` are the maximum bytes of each text's part of the reply."""
    total = ENVELOPE_BYTES + sum(sizes)
    if total <= limit:
        return
    fit = _count_that_fit(sizes, limit - ENVELOPE_BYTES)
    if isinstance(request, RerankRequest):
        advice = f"With `top_n` {fit} it would fit" if fit else "Leave `return_documents` out"
    elif fit:
        advice = f"The first {fit} of {len(sizes)} texts would fit"
    else:
        advice = "Not one would fit: lower `max_length`, or request fewer outputs or base64"
    raise TooLargeError(
        f"the reply to `{request.field}` must be at most {limit} bytes (`BGE_MAX_REPLY_BYTES`). "
        f"It would be {total}. {advice}",
        field=request.field,
        limit=limit,
    )


def _count_that_fit(parts: Sequence[int], limit: int) -> int:
    return sum(1 for total in accumulate(parts) if total <= limit)


def _embedding_bytes(request: EmbedRequest, text: Encoded, width: int) -> int:
    """Return the maximum bytes of one text's part of the reply."""
    tokens = len(text.ids)
    vector = _vector_bytes(request, width) + 4
    size = RESULT_BYTES
    if Outputs.DENSE in request.outputs:
        size += vector
    if Outputs.SPARSE in request.outputs:
        size += 32 + len(set(text.ids)) * (FLOAT_BYTES + 8)
    if request.return_tokens:
        size += 4 + tokens * TOKEN_BYTES
    if Outputs.COLBERT in request.outputs:
        size += 64 + (
            _vector_bytes(request, (tokens - 1) * width)
            if request.encoding_format == "base64"
            else (tokens - 1) * vector
        )
    return size


def _vector_bytes(request: EmbedRequest, dimensions: int) -> int:
    size = -(-dimensions * DTYPE_BITS[request.dtype] // 8)  # as binary data
    if request.encoding_format == "base64":
        return 4 * -(-size // 3)
    is_float = request.dtype in ("float32", "float16")
    return dimensions * FLOAT_BYTES if is_float else size * INTEGER_BYTES


def _ranking_bytes(request: RerankRequest) -> list[int]:
    """Return the maximum bytes of each of the `top_n` results, the largest documents first."""
    sizes = [RESULT_BYTES] * len(request.documents)
    if request.return_documents:
        texts = (json.dumps(text, ensure_ascii=False) for text in request.documents)
        sizes = sorted((104 + len(text.encode()) for text in texts), reverse=True)
    return sizes[: request.top_n]
