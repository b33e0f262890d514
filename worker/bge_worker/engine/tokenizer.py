"""Texts or pairs → token ids with special tokens, truncated as FlagEmbedding truncates them.

The `tokenizers` object is never configured to truncate or pad: that mutates it, and a thread that
encodes at that moment fails with "Already borrowed". Ids are truncated here, with equal results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer as FastTokenizer

from ..errors import StartError
from .config import Config
from .manifest import TOKENIZER, Manifest, check_file

PAIR_SPECIALS = 4  # <s> query </s></s> document </s>


@dataclass(slots=True)
class Encoded:
    """One text or pair, ready for the model.

    `ids` include the special tokens; `untruncated_length` is their number before truncation.
    """

    ids: list[int]
    untruncated_length: int

    @property
    def truncated(self) -> bool:
        return len(self.ids) < self.untruncated_length


class Token(NamedTuple):
    """A token, the vocabulary's spelling of it, and its characters `start` to `stop` in the text.

    A special token has neither of its own: `start` and `stop` are 0.
    """

    id: int
    string: str
    start: int
    stop: int
    special: bool


def open_tokenizer(path: Path) -> FastTokenizer:
    """Raises StartError if the file is not a tokenizer."""
    try:
        fast = FastTokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise StartError(f"`{path}` is not a tokenizer: {error}") from None
    fast.no_truncation()
    fast.no_padding()
    return fast


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Open the tokenizer of a runtime folder, without its weights and without torch.

    Raises StartError: the folder is not a runtime folder, or its tokenizer is not its own.
    """
    manifest, path = Manifest.read(Path(folder)), Path(folder) / TOKENIZER
    check_file(path, manifest.files[TOKENIZER])
    return Tokenizer(open_tokenizer(path), manifest.config)


class Tokenizer:
    """One `tokenizer.json` with XLM-RoBERTa's templates. Thread-safe."""

    def __init__(self, fast: FastTokenizer, config: Config) -> None:
        """Raises StartError if the tokenizer does not match the model."""
        self._fast = fast
        self._bos, self._eos = config.bos_token_id, config.eos_token_id
        self._max_length = config.max_length
        self._check(config.vocab_size)

    def _check(self, vocab_size: int) -> None:
        """The templates of `_single` and `_pair` must be the file's own; ids must be in range."""
        if self._fast.get_vocab_size() > vocab_size:
            raise StartError(
                f"the tokenizer has {self._fast.get_vocab_size()} tokens; the model {vocab_size}"
            )
        single, pair = self._fast.encode("a").ids, self._fast.encode("a", "a").ids
        (ids,) = self._encode(["a"])
        if single != self._single(ids) or pair != self._pair(ids, ids):
            raise StartError("the tokenizer's special tokens are not placed as XLM-RoBERTa's are")

    def encode_texts(self, texts: Sequence[str | Sequence[int]], max_length: int) -> list[Encoded]:
        """Encode each text as `<s> … </s>`, truncated to `max_length` tokens.

        A text may be token ids; `<s>` and `</s>` around them are not doubled.
        """
        max_length = min(max_length, self._max_length)
        from_strings = iter(self._encode([text for text in texts if isinstance(text, str)]))
        encoded = []
        for text in texts:
            ids = next(from_strings) if isinstance(text, str) else self._without_specials(text)
            encoded.append(Encoded(self._single(ids[: max_length - 2]), len(ids) + 2))
        return encoded

    def encode_pairs(
        self, queries: list[str], documents: Sequence[str], max_length: int
    ) -> list[Encoded]:
        """Encode each pair as `<s> query </s></s> document </s>`.

        There is one query for all documents, or one for each. It keeps at most three quarters of
        `max_length`; the rest is the document's (FlagEmbedding's `BaseReranker`, which tokenises
        the two separately).
        """
        max_length = min(max_length, self._max_length)
        ids = self._encode([*queries, *documents])
        queries_ids, documents_ids = ids[: len(queries)], ids[len(queries) :]
        if len(queries) == 1:
            queries_ids *= len(documents)
        pairs = []
        for query_ids, document_ids in zip(queries_ids, documents_ids, strict=True):
            kept_query = query_ids[: max_length * 3 // 4]
            kept_document = document_ids[: max_length - PAIR_SPECIALS - len(kept_query)]
            untruncated_length = len(query_ids) + len(document_ids) + PAIR_SPECIALS
            pairs.append(Encoded(self._pair(kept_query, kept_document), untruncated_length))
        return pairs

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[Token]:
        """Return all tokens of a text, never truncated."""
        encoding = self._fast.encode(text, add_special_tokens=add_special_tokens)
        parts = (encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask)
        return [
            Token(id, string, start, stop, bool(special))
            for id, string, (start, stop), special in zip(*parts, strict=True)
        ]

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        return [str(self._fast.id_to_token(id)) for id in ids]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return str(self._fast.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Ids without special tokens; in parallel and without the GIL."""
        encodings = self._fast.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _without_specials(self, ids: Sequence[int]) -> list[int]:
        start = 1 if ids[0] == self._bos else 0
        end = len(ids) - 1 if ids[-1] == self._eos else len(ids)
        return list(ids[start:end])

    def _single(self, ids: list[int]) -> list[int]:
        return [self._bos, *ids, self._eos]

    def _pair(self, query: list[int], document: list[int]) -> list[int]:
        return [self._bos, *query, self._eos, self._eos, *document, self._eos]
