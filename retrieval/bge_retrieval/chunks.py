"""Cut long documents into chunks, each a point of its own.

    documents → tokens of a page of them (one request) → spans → one `Document` for each chunk

A chunk's payload is the document's without its texts, and `_chunk`: the document's point id, the
chunk's number, its first character and its end, and its text. The first chunk also has their count.
The chunks that a shorter document no longer has are deleted before its first is written, so a
killed run can be run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bge_client import ConfigurationError, ValidationError

from .documents import CHUNK, Document, chunk_id, chunk_in, text_at, without_texts
from .store import PointId, Store
from .sync import pages
from .tokens import TokenCounter, Tokenizer

TEXT_FIELD = f"{CHUNK}.text"
SPECIAL_TOKENS = 2
TOKENS, OVERLAP = 512, 64  # the defaults of a chunk
MIN_TOKENS, MAX_TOKENS = 32, 8192
PAGE = 64  # documents whose tokens are counted together


class Chunker:
    """Cuts documents into chunks.

    A chunk has at most `tokens` tokens, with its title and the special tokens, and repeats up to
    `overlap` tokens of the one before it. `title_field` is the path of a text that begins every
    chunk of a document.

    Raises:
        ConfigurationError: a number is out of range, or semantic-text-splitter is missing.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        tokens: int = TOKENS,
        overlap: int = OVERLAP,
        title_field: str | None = None,
    ) -> None:
        try:
            from semantic_text_splitter import TextSplitter
        except ImportError:
            raise ConfigurationError(
                "chunks need semantic-text-splitter: pip install 'bge-retrieval[chunk]'"
            ) from None
        if not MIN_TOKENS <= tokens <= MAX_TOKENS:
            raise ConfigurationError(
                f"`tokens` of a chunk must be from {MIN_TOKENS} to {MAX_TOKENS}. Given: {tokens}"
            )
        if not 0 <= overlap < tokens // 2:
            raise ConfigurationError(
                f"`overlap` must be from 0 to less than half of `tokens`. Given: {overlap}"
            )
        self._splitter, self._tokenizer = TextSplitter, tokenizer
        self._tokens, self._overlap, self._title_field = tokens, overlap, title_field

    def metadata(self, text_fields: Sequence[str]) -> dict[str, Any]:
        """Return what a collection records of its chunks.

        Raises:
            ConfigurationError: the title is one of the texts.
        """
        if self._title_field in text_fields:
            raise ConfigurationError(
                "`title_field` begins every chunk, so it must not be one of `text_fields`. "
                f"Given: {self._title_field}"
            )
        return {
            "tokens": self._tokens,
            "overlap": self._overlap,
            "title_field": self._title_field,
            "text_fields": [*text_fields],
        }

    def cut(
        self, documents: Iterable[Document], text_fields: Sequence[str]
    ) -> Iterator[tuple[Document, list[Document]]]:
        """Yield each document and its chunks. Their payloads do not have its `text_fields`.

        Raises:
            ValidationError: a title leaves too few tokens for a chunk.
        """
        for page in pages(documents, PAGE, _characters):
            titles = [self._title(document) for document in page]
            tokens = self._tokenizer.tokens([*titles, *(document.text for document in page)])
            starts = [[token.start for token in of_text] for of_text in tokens]
            for index, document in enumerate(page):
                capacity = self._capacity(document, len(starts[index]))
                spans = self._spans(document.text, starts[len(page) + index], capacity)
                payload = without_texts(document.payload, text_fields)
                yield document, _chunks(document._replace(payload=payload), titles[index], spans)

    def _title(self, document: Document) -> str:
        field = self._title_field
        return (text_at(document.payload, [field]) or "") if field else ""

    def _capacity(self, document: Document, title_tokens: int) -> int:
        """Return the tokens that a title leaves in a chunk: half of them at least."""
        capacity = self._tokens - SPECIAL_TOKENS - title_tokens
        if capacity < self._tokens // 2:
            raise ValidationError(
                f"document {document.id}: the title must leave half of a chunk's {self._tokens} "
                f"tokens. Given: {title_tokens} tokens"
            )
        return capacity

    def _spans(self, text: str, starts: Sequence[int], capacity: int) -> list[tuple[int, str]]:
        """Return the first character and the text of each chunk."""
        if len(starts) <= capacity:
            return [(0, text)]
        counter = TokenCounter(text, starts)
        splitter = self._splitter.from_callback(counter, capacity, overlap=self._overlap)
        return splitter.chunk_indices(text)


def _chunks(document: Document, title: str, spans: Sequence[tuple[int, str]]) -> list[Document]:
    chunks = []
    for number, (start, text) in enumerate(spans):
        chunk: dict[str, Any] = {"document": document.id, "number": number}
        chunk |= {"start": start, "end": start + len(text)}
        chunk["text"] = f"{title}\n{text}" if title else text
        if number == 0:
            # In the first alone, so that a text added to the end changes the last chunks only.
            chunk["count"] = len(spans)
        payload = {**document.payload, CHUNK: chunk}
        id = chunk_id(document.id, number)
        chunks.append(Document(id, chunk["text"], payload, document.uuid))
    return chunks


def _characters(document: Document) -> int:
    return len(document.text)


def cut_documents(
    store: Store,
    collection: str,
    documents: Iterable[Document],
    chunker: Chunker,
    text_fields: Sequence[str],
) -> Iterator[Document]:
    """Yield the chunks of documents. Deletes the last chunks of those that have fewer than before.

    Raises:
        ValidationError: a document occurs twice, so its chunks could not be told apart.
    """
    seen: set[PointId] = set()
    for page in pages(chunker.cut(_check_unique(documents, seen), text_fields), PAGE):
        _delete_surplus(store, collection, {document.id: parts for document, parts in page})
        for _, parts in page:
            yield from parts


def _check_unique(documents: Iterable[Document], seen: set[PointId]) -> Iterator[Document]:
    for document in documents:
        if document.id in seen:
            raise ValidationError(
                f"document {document.id} occurs twice. With chunks, each document must occur once"
            )
        seen.add(document.id)
        yield document


def _delete_surplus(store: Store, collection: str, chunks: dict[PointId, list[Document]]) -> None:
    """Delete the stored chunks whose number a document no longer has."""
    if not store.exists(collection):
        return
    stored = store.payloads(collection, [chunk_id(id, 0) for id in chunks])
    surplus: list[PointId] = []
    for id, parts in chunks.items():
        first = chunk_in(stored.get(chunk_id(id, 0), {})) or {}
        surplus += [chunk_id(id, number) for number in range(len(parts), first.get("count", 0))]
    if surplus:
        store.delete(collection, surplus)
