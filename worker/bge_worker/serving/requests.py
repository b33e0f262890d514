"""Requests after validation, and replies before they are encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from ..engine.config import Role
from ..engine.outputs import Outputs
from ..engine.texts import MAX_LENGTH as MAX_LENGTH  # for whoever makes a request
from ..engine.texts import MIN_TEXT_LENGTH as MIN_TEXT_LENGTH

DEFAULT_OVERLAP = 80  # tokens that two windows of a document share
DEFAULT_PAIR_LENGTH = 1024  # tokens of a pair
# A query of three quarters and the four special tokens leave the document at least one token.
MIN_PAIR_LENGTH = 17

EncodingFormat = Literal["float", "base64"]
# int8, uint8: x · 127 / max|x|, vector by vector. binary, ubinary: the sign, 8 dimensions a byte.
Dtype = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]


@dataclass(frozen=True)
class EmbedRequest:
    """Texts to embed. A text may also be token ids of the model's own tokenizer.

    `field` is what the caller's dialect calls the texts, for error messages. Integer dtypes apply
    to dense and ColBERT vectors in both encodings, float dtypes to base64 alone.
    """

    texts: Sequence[str | Sequence[int]]
    outputs: Outputs = Outputs.DENSE
    max_length: int = MAX_LENGTH
    truncate: bool = True
    encoding_format: EncodingFormat = "float"
    dtype: Dtype = "float32"
    return_tokens: bool = False
    field: str = "texts"

    role: ClassVar[Role] = "embed"


class Windows(NamedTuple):
    """Whole documents, the document of each window, and documents whose end is in no window."""

    documents: Sequence[str]
    owners: Sequence[int]
    unread: Sequence[int]


@dataclass(frozen=True)
class RerankRequest:
    """Documents (`texts`) to score against a query, or each against its own of `query`.

    With `max_chunks_per_doc` above 1, `windows.split_documents` puts windows in their place.
    """

    query: str | list[str]
    texts: Sequence[str]
    top_n: int | None = None
    raw_scores: bool = False
    return_documents: bool = False
    max_length: int = DEFAULT_PAIR_LENGTH
    truncate: bool = True
    max_chunks_per_doc: int = 1
    overlap_tokens: int = DEFAULT_OVERLAP
    windows: Windows | None = None
    field: str = "documents"

    role: ClassVar[Role] = "rerank"
    outputs: ClassVar[Outputs] = Outputs.RELEVANCE

    @property
    def queries(self) -> list[str]:
        """One query, or one for each document."""
        return [self.query] if isinstance(self.query, str) else self.query

    @property
    def documents(self) -> Sequence[str]:
        return self.texts if self.windows is None else self.windows.documents


InferenceRequest = EmbedRequest | RerankRequest


class Reply(NamedTuple):
    """`body` is JSON-safe. A small one is encoded faster than a switch to another thread takes."""

    body: dict[str, Any]
    is_small: bool = True


def has_small_reply(request: InferenceRequest, tokens: int) -> bool:
    """Whether the reply is built and encoded in less time than a switch to another thread takes.

    `tokens` is the number of tokens of the request.
    """
    is_short = len(request.texts) <= 4 and tokens <= 512
    if isinstance(request, RerankRequest):
        return is_short and not request.return_documents
    return is_short and Outputs.COLBERT not in request.outputs
