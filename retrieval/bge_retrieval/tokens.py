"""The tokens of texts, by the model's own tokenizer: a file, or the server's."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from bge_client import Client, ConfigurationError, HTTPStatusError, ProtocolError

# Of a request to /tokenize, which replies at most 200,000 tokens.
REQUEST_CHARACTERS = 200_000


class Token(NamedTuple):
    """A token as the tokenizer writes it, and the character at which it starts."""

    id: int
    text: str
    start: int


class Tokenizer(Protocol):
    def tokens(self, texts: Sequence[str]) -> list[list[Token]]:
        """Return the tokens of each text in order, without special ones."""


class TokenizerFile:
    """A model's `tokenizer.json`.

    Raises:
        ConfigurationError: the package tokenizers is missing, or the file cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            from tokenizers import Tokenizer as HuggingFaceTokenizer
        except ImportError:
            raise ConfigurationError(
                "a tokenizer file needs tokenizers: pip install 'bge-retrieval[chunk]'"
            ) from None
        try:
            self._tokenizer = HuggingFaceTokenizer.from_file(os.fspath(path))
        except Exception as error:  # the library raises no narrower type
            raise ConfigurationError(f"{path} cannot be read as a tokenizer.json") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def tokens(self, texts: Sequence[str]) -> list[list[Token]]:
        encodings = self._tokenizer.encode_batch([*texts], add_special_tokens=False)
        return [
            [
                Token(id, text, start)
                for id, text, (start, _) in zip(
                    encoding.ids, encoding.tokens, encoding.offsets, strict=True
                )
            ]
            for encoding in encodings
        ]


class ServerTokenizer:
    """The `/tokenize` of the server of `client`. A queue endpoint on RunPod has no such route."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def tokens(self, texts: Sequence[str]) -> list[list[Token]]:
        """Send as few requests as the server's limit allows.

        Raises:
            ConfigurationError: the endpoint has no `/tokenize`.
            BGEError: see `errors.py`.
        """
        tokens: list[list[Token]] = [[] for _ in texts]
        for batch in _batches(texts):
            pieces = [texts[index][first:last] for index, first, last in batch]
            for (index, first, _), piece in zip(batch, self._request(pieces), strict=True):
                tokens[index] += [token._replace(start=first + token.start) for token in piece]
        return tokens

    def _request(self, texts: list[str]) -> list[list[Token]]:
        try:
            reply = self._client.post("/tokenize", {"inputs": texts, "add_special_tokens": False})
            return [
                [Token(int(item["id"]), str(item["text"]), int(item["start"])) for item in items]
                for items in reply
            ]
        except HTTPStatusError as error:
            if error.status != 404:
                raise
        except (KeyError, TypeError, ValueError):
            raise ProtocolError("the reply of /tokenize has no list of tokens") from None
        raise ConfigurationError("the endpoint has no /tokenize: use the model's tokenizer.json")


def _batches(texts: Sequence[str]) -> Iterator[list[tuple[int, int, int]]]:
    """Yield the pieces of each request: the text's index, the first character and the end."""
    batch: list[tuple[int, int, int]] = []
    room = REQUEST_CHARACTERS
    for index, text in enumerate(texts):
        for first in range(0, len(text), REQUEST_CHARACTERS):
            last = min(len(text), first + REQUEST_CHARACTERS)
            if last - first > room:
                yield batch
                batch, room = [], REQUEST_CHARACTERS
            batch.append((index, first, last))
            room -= last - first
    if batch:
        yield batch


class TokenCounter:
    """Counts the tokens of parts of a text, which was tokenized once and as a whole."""

    def __init__(self, text: str, starts: Sequence[int]) -> None:
        self._text, self._starts = text, starts

    def __call__(self, part: str) -> int:
        """Return the tokens of a part. Equal parts have as many tokens wherever they are."""
        first = self._text.index(part)
        return bisect_left(self._starts, first + len(part)) - bisect_left(self._starts, first)
