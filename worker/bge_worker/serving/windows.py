"""Documents too long for one pair are read in overlapping windows; the best one counts."""

from __future__ import annotations

from dataclasses import replace

from ..engine.tokenizer import PAIR_SPECIALS, Tokenizer
from ..errors import TooLargeError, ValidationError
from .requests import RerankRequest, Windows


def split_documents(
    request: RerankRequest, tokenizer: Tokenizer, model_length: int, max_tokens: int
) -> RerankRequest:
    """Return a request of one query with windows in place of documents.

    A window has the tokens that `max_length` leaves beside the query; the next begins
    `overlap_tokens` before its end. A document has at most `max_chunks_per_doc` windows, all have
    at most `max_tokens` tokens (`BGE_MAX_REQUEST_TOKENS`).

    Raises:
        ValidationError: the windows would not advance, or without `truncate` the end of a document
            or of the query would not be read.
        TooLargeError: there are too many tokens.
    """
    size = window_size(request, tokenizer, min(request.max_length, model_length))
    step = size - request.overlap_tokens
    texts: list[str] = []
    owners: list[int] = []
    unread: list[int] = []
    total = 0
    for index, document in enumerate(request.texts):
        tokens = tokenizer.tokenize(document, add_special_tokens=False)
        starts = range(0, max(1, len(tokens) - request.overlap_tokens), step)
        for start in starts[: request.max_chunks_per_doc]:
            window = tokens[start : start + size]
            whole = len(tokens) <= size
            texts.append(document if whole else document[window[0].start : window[-1].stop])
            owners.append(index)
            total += len(window)
        if total > max_tokens:
            raise TooLargeError(
                f"the windows of `{request.field}` must have at most {max_tokens} tokens "
                f"(`BGE_MAX_REQUEST_TOKENS`). Given: {total} in the first {index + 1} of "
                f"{len(request.texts)} documents. Lower `max_chunks_per_doc`",
                field=request.field,
                limit=max_tokens,
            )
        if len(starts) > request.max_chunks_per_doc:
            unread.append(index)
            if not request.truncate:
                raise ValidationError(
                    f"`{request.field}[{index}]` has {len(tokens)} tokens, too many for "
                    f"`max_chunks_per_doc` {request.max_chunks_per_doc}, and `truncate` is false",
                    field=request.field,
                    index=index,
                )
    windows = Windows(request.texts, owners, unread)
    # Cut out of its document, a window may have a token more at its edge, which is not read.
    return replace(request, texts=texts, truncate=True, windows=windows)


def window_size(request: RerankRequest, tokenizer: Tokenizer, max_length: int) -> int:
    """Return the tokens of a window: what the query leaves of `max_length`.

    Raises ValidationError: the query would be cut without `truncate`, or windows would not advance.
    """
    max_query = max_length * 3 // 4
    query_tokens = len(tokenizer.tokenize(request.queries[0], add_special_tokens=False))
    if query_tokens > max_query and not request.truncate:
        raise ValidationError(
            f"`query` has {query_tokens} tokens, of {max_query} that `max_length` {max_length} "
            "leaves it, and `truncate` is false",
            field="query",
            limit=max_query,
        )
    size = max_length - PAIR_SPECIALS - min(query_tokens, max_query)
    if size <= request.overlap_tokens:
        raise ValidationError(
            f"`overlap_tokens` must be below {size}, the tokens that `max_length` leaves for a "
            f"document. Given: {request.overlap_tokens}",
            field="overlap_tokens",
            limit=size - 1,
        )
    return size
