"""Texts or pairs → token ids with their special tokens, cut as FlagEmbedding cuts them.

The `tokenizers` object is never told to truncate or pad: that mutates it, and a thread that
encodes at that moment dies of "Already borrowed". Ids are cut here instead, which gives the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer as FastTokenizer

from ..errors import StartError
from .model import Config

PAIR_SPECIALS = 4  # <s> query </s></s> document </s>


class Encoded(NamedTuple):
    """One text or pair, ready for the model.

    `ids` hold the special tokens; `full_length` is how many there were before cutting. `source`
    and `max_length` are what the reference engine starts from.
    """

    ids: list[int]
    full_length: int
    source: str | tuple[str, str]
    max_length: int

    @property
    def cut(self) -> bool:
        return len(self.ids) < self.full_length


def open_tokenizer(path: Path) -> FastTokenizer:
    """Raises StartError: not a tokenizer."""
    try:
        fast = FastTokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise StartError(f"`{path}` is not a tokenizer: {error}") from None
    fast.no_truncation()
    fast.no_padding()
    return fast


class Tokenizer:
    """One `tokenizer.json` with XLM-RoBERTa's templates. Safe to use from several threads."""

    def __init__(self, fast: FastTokenizer, config: Config) -> None:
        """Raises StartError: the tokenizer disagrees with the model."""
        self._fast = fast
        self._bos, self._eos = config.bos_id, config.eos_id
        self._most = config.positions
        self._check(config.vocab_size)

    def _check(self, vocab_size: int) -> None:
        """Our templates must be the file's own, and no id may lie outside the embedding."""
        if self._fast.get_vocab_size() > vocab_size:
            raise StartError(
                f"the tokenizer has {self._fast.get_vocab_size()} tokens; the model {vocab_size}"
            )
        single, pair = self._fast.encode("a").ids, self._fast.encode("a", "a").ids
        (a,) = self._plain(["a"])
        if single != self._single(a) or pair != self._pair(a, a):
            raise StartError("the tokenizer frames texts otherwise than XLM-RoBERTa does")

    def encode_texts(self, texts: Sequence[str | Sequence[int]], max_length: int) -> list[Encoded]:
        """Each text framed as `<s> … </s>`, its end cut to `max_length` tokens.

        Token ids stand for the tokens of a text; a frame they bring with them is not doubled.
        """
        max_length = min(max_length, self._most)
        strings = [text if isinstance(text, str) else self._decode(text) for text in texts]
        plain = iter(self._plain([text for text in texts if isinstance(text, str)]))
        encoded = []
        for text, source in zip(texts, strings, strict=True):
            ids = next(plain) if isinstance(text, str) else self._bare(text)
            framed = self._single(ids[: max_length - 2])
            encoded.append(Encoded(framed, len(ids) + 2, source, max_length))
        return encoded

    def encode_pairs(self, query: str, documents: Sequence[str], max_length: int) -> list[Encoded]:
        """Each pair framed as `<s> query </s></s> document </s>`.

        The query keeps at most three quarters of `max_length`, then the document is cut
        (FlagEmbedding's `BaseReranker`, which tokenises the two apart).
        """
        max_length = min(max_length, self._most)
        full_query, *full_documents = self._plain([query, *documents])
        kept = full_query[: max_length * 3 // 4]
        room = max_length - PAIR_SPECIALS - len(kept)
        return [
            Encoded(
                self._pair(kept, full_document[:room]),
                len(full_query) + len(full_document) + PAIR_SPECIALS,
                (query, document),
                max_length,
            )
            for document, full_document in zip(documents, full_documents, strict=True)
        ]

    def _plain(self, texts: list[str]) -> list[list[int]]:
        """Without special tokens; in parallel, without the interpreter's lock."""
        return [
            encoding.ids
            for encoding in self._fast.encode_batch_fast(texts, add_special_tokens=False)
        ]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._fast.decode(list(ids)))

    def _bare(self, ids: Sequence[int]) -> list[int]:
        start = 1 if ids[0] == self._bos else 0
        end = len(ids) - 1 if ids[-1] == self._eos else len(ids)
        return list(ids[start:end])

    def _single(self, ids: list[int]) -> list[int]:
        return [self._bos, *ids, self._eos]

    def _pair(self, query: list[int], document: list[int]) -> list[int]:
        return [self._bos, *query, self._eos, self._eos, *document, self._eos]
