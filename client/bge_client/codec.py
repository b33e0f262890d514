"""Build request payloads and decode replies into arrays. Every field of a reply is checked."""

from __future__ import annotations

import base64
import binascii
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .errors import ConfigurationError, ProtocolError, ValidationError
from .results import EmbedResult, Floats, RankedDocument, SparseVector, Usage, WireFloats

Dtype = Literal["float32", "float16"]
Reply = Mapping[str, Any]


@dataclass(frozen=True)
class EmbedOptions:
    """The options of an embedding request.

    Raises:
        ConfigurationError: one is invalid.
    """

    dense: bool = True
    sparse: bool = False
    colbert: bool = False
    max_length: int | None = None
    truncate: bool = True
    dtype: Dtype | None = None

    def __post_init__(self) -> None:
        if not (self.dense or self.sparse or self.colbert):
            raise ConfigurationError("at least one of `dense`, `sparse` and `colbert` must be true")
        if self.dtype not in (None, "float32", "float16"):
            raise ConfigurationError("`dtype` must be float32 or float16")

    @property
    def wire_dtype(self) -> Dtype:
        return self.dtype or ("float16" if self.colbert else "float32")

    def payload(self, texts: Sequence[str]) -> dict[str, Any]:
        return {
            "texts": list(texts),
            "return_dense": self.dense,
            "return_sparse": self.sparse,
            "return_colbert": self.colbert,
            "truncate": self.truncate,
            "encoding_format": "base64",
            "dtype": self.wire_dtype,
        } | _optional("max_length", self.max_length)


@dataclass(frozen=True)
class RerankOptions:
    """The options of a rerank request, and its query.

    Raises:
        ConfigurationError, ValidationError: `top_n` or `query` is invalid.
    """

    query: str
    top_n: int | None = None  # of all documents: not sent, since each request holds a part
    raw_scores: bool = False
    max_length: int | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.top_n is not None and self.top_n < 1:
            raise ConfigurationError(f"`top_n` must be at least 1. Given: {self.top_n}")
        checked_text(self.query, "query")

    def payload(self, documents: Sequence[str]) -> dict[str, Any]:
        return {
            "query": self.query,
            "documents": list(documents),
            "raw_scores": self.raw_scores,
            "truncate": self.truncate,
        } | _optional("max_length", self.max_length)


def _optional(field: str, value: int | None) -> dict[str, Any]:
    return {} if value is None else {field: value}


def iter_checked(texts: object, field: str) -> Iterator[str]:
    """Return an iterator over a text or an iterable of texts, which checks each when it is read.

    Raises:
        ValidationError: `texts` is neither, or holds a text that a worker would refuse.
    """
    items = [texts] if isinstance(texts, str) else texts
    if isinstance(items, Mapping | bytes) or not isinstance(items, Iterable):
        given = type(texts).__name__
        raise ValidationError(f"`{field}` must hold strings. Given: {given}", field=field)
    return (checked_text(text, field, index) for index, text in enumerate(items))


def checked_texts(texts: object, field: str) -> list[str]:
    """Return a text or an iterable of texts as a list.

    Raises:
        ValidationError: as `iter_checked`, or there is no text.
    """
    text_list = list(iter_checked(texts, field))
    if not text_list:
        raise ValidationError(f"`{field}` must hold at least one text", field=field)
    return text_list


def checked_documents(documents: object) -> list[str]:
    """Return the texts of documents, each a string or an object with a `text`.

    Raises:
        ValidationError: as `checked_texts`.
    """
    if isinstance(documents, Iterable) and not isinstance(documents, str | bytes | Mapping):
        documents = [item.get("text") if isinstance(item, Mapping) else item for item in documents]
    return checked_texts(documents, "documents")


def checked_text(text: object, field: str, index: int | None = None) -> str:
    """Return `text`. Raises ValidationError if a worker would refuse it."""
    reason = None
    if not isinstance(text, str):
        reason = f"must be a string. Given: {type(text).__name__}"
    elif not text or text.isspace():
        reason = "must not be empty or blank"
    else:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            reason = f"must be valid Unicode. Given: a lone surrogate at character {error.start}"
    if reason is None:
        return text  # type: ignore[return-value]
    name = field if index is None else f"{field}[{index}]"
    raise ValidationError(f"`{name}` {reason}", field=field, index=index)


def input_digest(payload: Mapping[str, Any]) -> str:
    """Return the `input_digest` that the reply to this payload must have."""
    texts = payload.get("texts") or payload.get("documents") or []
    if "query" in payload:
        texts = [payload["query"], *texts]
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()[:16]


def embed_result(reply: Reply, options: EmbedOptions, count: int) -> EmbedResult:
    """Decode the reply to `count` texts.

    Raises:
        ProtocolError: the reply does not match the request or the contract.
    """
    return EmbedResult(
        dense=_dense(reply, options, count) if options.dense else None,
        sparse=[
            _sparse(item) for item in _items(reply, "sparse_embeddings", count)
        ] if options.sparse else None,
        colbert=[
            _colbert(item, options) for item in _items(reply, "colbert_embeddings", count)
        ] if options.colbert else None,
        count=count,
        **reply_metadata(reply, count),
    )  # fmt: skip


def ranked_documents(reply: Reply, documents: Sequence[str], count: int) -> list[RankedDocument]:
    """Decode a ranking of the best `count` of `documents`.

    Raises:
        ProtocolError: an index or a score is missing or invalid.
    """
    ranking = [_ranked_document(item, documents) for item in _items(reply, "results", count)]
    if len({document.index for document in ranking}) != count:
        raise ProtocolError("`results` must hold each `index` only once")
    return ranking


def reply_metadata(reply: Reply, count: int) -> dict[str, Any]:
    """Decode the fields of a reply beside its vectors or scores."""
    return {
        "truncated": _truncated_indices(reply, count),
        "usage": _usage(reply),
        "model": _string(reply, "model"),
        "fingerprint": _string(reply, "fingerprint"),
    }


def _ranked_document(item: object, documents: Sequence[str]) -> RankedDocument:
    index = item.get("index") if isinstance(item, dict) else None
    score: Any = item.get("relevance_score") if isinstance(item, dict) else None
    if type(index) is not int or not 0 <= index < len(documents):
        raise ProtocolError(f"`results` must hold an `index` below {len(documents)}")
    # An integer of 400 digits is no float.
    if type(score) not in (float, int) or not abs(score) <= sys.float_info.max:
        raise ProtocolError("`results` must hold a `relevance_score`")
    return RankedDocument(index, float(score), documents[index])


def _dense(reply: Reply, options: EmbedOptions, count: int) -> Floats:
    width = reply.get("dimensions")
    if type(width) is not int or width < 1:
        raise ProtocolError("`dimensions` must be a positive integer")
    items = _items(reply, "embeddings", count)
    vectors = [_floats(item, options.wire_dtype) for item in items]
    for size in map(len, vectors):
        if size != width:
            raise ProtocolError(f"`embeddings` must have {width} dimensions each. Given: {size}")
    return np.stack(vectors).astype(np.float32, copy=False)


def _sparse(item: object) -> SparseVector:
    if not isinstance(item, dict):
        raise ProtocolError("`sparse_embeddings` must hold objects")
    ids, weights = item.get("indices"), item.get("values")
    if not isinstance(ids, list) or not isinstance(weights, list):
        raise ProtocolError("`sparse_embeddings` must hold `indices` and `values`")
    if any(type(i) is not int for i in ids) or any(type(w) not in (int, float) for w in weights):
        raise ProtocolError("`sparse_embeddings` must hold numbers")
    try:
        with np.errstate(over="ignore"):  # 1e300 becomes infinite and is refused below
            indices, values = np.array(ids, np.uint32), np.array(weights, np.float32)
    except OverflowError:
        raise ProtocolError("`sparse_embeddings` must hold 32-bit numbers") from None
    if indices.shape != values.shape or not np.isfinite(values).all():
        raise ProtocolError("`sparse_embeddings` must hold as many finite `values` as `indices`")
    if (indices[1:] <= indices[:-1]).any():
        raise ProtocolError("`indices` must ascend")
    return SparseVector(indices, values)


def _colbert(item: object, options: EmbedOptions) -> WireFloats:
    shape = item.get("shape") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(shape, list) or len(shape) != 2:
        raise ProtocolError("`colbert_embeddings` must hold objects with a `shape` of two")
    flat = _floats(item.get("data"), options.wire_dtype)
    if any(type(side) is not int or side < 1 for side in shape) or shape[0] * shape[1] != len(flat):
        raise ProtocolError(f"`colbert_embeddings` hold {len(flat)} numbers for shape {shape}")
    return flat.reshape(shape)


def _floats(item: object, dtype: Dtype) -> WireFloats:
    """Decode little-endian base64. The array is a read-only view of the decoded bytes."""
    try:
        raw = base64.b64decode(item, validate=True)  # type: ignore[arg-type]
        array = np.frombuffer(raw, np.dtype(dtype).newbyteorder("<"))
    except (TypeError, ValueError, binascii.Error):
        raise ProtocolError(f"a vector must be base64 of {dtype}") from None
    if not np.isfinite(array).all():
        raise ProtocolError("a vector holds NaN or infinity")
    return array


def _items(reply: Reply, field: str, count: int) -> list[Any]:
    items = reply.get(field)
    if not isinstance(items, list) or len(items) != count:
        actual = len(items) if isinstance(items, list) else type(items).__name__
        raise ProtocolError(f"`{field}` must hold {count} items. Given: {actual}")
    return items


def _string(reply: Reply, field: str) -> str:
    value = reply.get(field)
    if not isinstance(value, str) or not value:
        raise ProtocolError(f"`{field}` must be a string")
    return value


def _truncated_indices(reply: Reply, count: int) -> list[int]:
    truncated = reply.get("truncated", [])
    if not isinstance(truncated, list) or any(
        type(i) is not int or not 0 <= i < count for i in truncated
    ):
        raise ProtocolError(f"`truncated` must hold indices below {count}")
    return truncated


def _usage(reply: Reply) -> Usage:
    usage = reply.get("usage")
    counts: list[Any] = [usage.get(n) for n in Usage._fields] if isinstance(usage, dict) else [None]
    if any(type(count) is not int for count in counts):
        raise ProtocolError("`usage` must hold `prompt_tokens` and `total_tokens`")
    return Usage(*counts)
