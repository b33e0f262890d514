"""Why a document matches a query: its similarities, token by token.

    dense      one number: the cosine
    sparse     the sum of the products of the weights of the tokens that both texts have
    colbert    the mean, over the query's tokens, of the similarity with the nearest document token

The vectors are computed anew, since a collection may hold quantized ones or none of a kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bge_client import Client, Embedding

from .schema import present
from .tokens import Token, Tokenizer

END = "</s>"  # the last ColBERT vector's token; the first token has none


class SharedToken(NamedTuple):
    """A token of both texts, and its sparse weights."""

    text: str
    query_weight: float
    document_weight: float

    @property
    def product(self) -> float:
        return self.query_weight * self.document_weight


class AlignedToken(NamedTuple):
    """A token of the query, and the document token whose ColBERT vector is nearest to its own."""

    query_token: str
    document_token: str
    similarity: float


@dataclass(frozen=True)
class Explanation:
    """The similarities of a query and a document.

    `shared` has the largest products first; `aligned` is in the query's order.
    """

    dense: float
    shared: list[SharedToken]
    aligned: list[AlignedToken]

    @property
    def sparse(self) -> float:
        return sum(token.product for token in self.shared)

    @property
    def colbert(self) -> float:
        return sum(token.similarity for token in self.aligned) / len(self.aligned)

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation as JSON-serializable values."""
        return {
            "dense": self.dense,
            "sparse": self.sparse,
            "colbert": self.colbert,
            "shared": [token._asdict() for token in self.shared],
            "aligned": [token._asdict() for token in self.aligned],
        }


class _Text(NamedTuple):
    tokens: Sequence[Token]
    embedding: Embedding

    @property
    def weights(self) -> dict[int, float]:
        indices, values = present(self.embedding.sparse)
        return dict(zip(indices.tolist(), values.tolist(), strict=True))

    @property
    def colbert(self) -> Any:
        """[tokens - 1, D] float32."""
        return np.asarray(present(self.embedding.colbert), np.float32)

    @property
    def colbert_tokens(self) -> list[str]:
        """The token of each ColBERT vector. A text may have been cut before its last tokens."""
        count = len(self.colbert) - 1
        return [*(token.text for token in self.tokens[:count]), END]


def explain(
    client: Client,
    tokenizer: Tokenizer,
    query: str,
    documents: Sequence[str],
    *,
    max_length: int | None = None,
) -> list[Explanation]:
    """Explain the similarity of a query with each of at least one text.

    `tokenizer` is the one of the client's model.

    Raises:
        BGEError: see `errors.py`.
    """
    texts = [query, *documents]
    embeddings = client.embed(texts, sparse=True, colbert=True, max_length=max_length)
    tokens = tokenizer.tokens(texts)
    query_text, *document_texts = map(_Text, tokens, embeddings)
    return [_explain(query_text, document) for document in document_texts]


def _explain(query: _Text, document: _Text) -> Explanation:
    cosine = present(query.embedding.dense) @ present(document.embedding.dense)
    return Explanation(float(cosine), _shared(query, document), _aligned(query, document))


def _shared(query: _Text, document: _Text) -> list[SharedToken]:
    names = {token.id: token.text for token in query.tokens}
    of_query, of_document = query.weights, document.weights
    shared = [
        SharedToken(names.get(id, str(id)), of_query[id], of_document[id])
        for id in of_query.keys() & of_document.keys()
    ]
    return sorted(shared, key=lambda token: (-token.product, token.text))


def _aligned(query: _Text, document: _Text) -> list[AlignedToken]:
    similarities = query.colbert @ document.colbert.T  # [query tokens, document tokens]
    nearest = similarities.argmax(axis=1).tolist()
    names = document.colbert_tokens
    return [
        AlignedToken(token, names[index], float(row[index]))
        for token, index, row in zip(query.colbert_tokens, nearest, similarities, strict=True)
    ]
