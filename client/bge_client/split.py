"""Any number of texts → pieces that a worker takes and whose replies a platform carries.

How many tokens a text has only the worker knows; here it is estimated, on the high side for
Russian and English. What is too large all the same comes back as `TooLargeError`, and is halved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .codec import EmbedOptions

# Well below RunPod's own (10 MB by /run, 20 MB by /runsync), and enough for a worker to be busy
# for seconds: larger pieces would only leave other workers idle and be dearer to send again.
PIECE_TEXTS = 256
PIECE_BYTES = 4_000_000
CHARACTERS_PER_TOKEN = 2.5
WIDTH = 1024  # bge-m3's


@dataclass(frozen=True)
class Limits:
    """What a worker takes; as it says itself, or the contract's defaults."""

    max_texts: int = 2048
    max_request_tokens: int = 1_000_000
    max_reply_bytes: int = 9_500_000

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Limits:
        told = info.get("limits")
        told = told if isinstance(told, dict) else {}
        names = ("max_texts", "max_request_tokens", "max_reply_bytes")
        return cls(**{n: told[n] for n in names if type(told.get(n)) is int and told[n] > 0})


def tokens_of(text: str, max_length: int | None) -> int:
    return min(max_length or 8192, 2 + int(len(text) / CHARACTERS_PER_TOKEN))


def embedding_bytes(options: EmbedOptions) -> Callable[[str], int]:
    """Of a text, the bytes its vectors will take in a reply, about."""
    vector = WIDTH * (2 if options.dtype == "float16" else 4) * 4 // 3

    def size(text: str) -> int:
        tokens = tokens_of(text, options.max_length)
        return (
            options.dense * (vector + 8)
            + options.sparse * (32 + 20 * tokens)
            + options.colbert * (64 + vector * tokens)
        )

    return size


def pieces(
    texts: Iterable[str],
    limits: Limits,
    reply_bytes: Callable[[str], int],
    tokens: Callable[[str], int],
) -> Iterator[list[str]]:
    """Consecutive texts that go together; lazily. A text too large for any piece goes alone."""
    most_texts = min(PIECE_TEXTS, limits.max_texts)
    most_bytes = min(PIECE_BYTES, limits.max_reply_bytes)
    piece: list[str] = []
    sent = returned = counted = 0
    try:
        for text in texts:
            size, reply, length = len(text.encode()) + 4, reply_bytes(text), tokens(text)
            full = (
                len(piece) == most_texts
                or sent + size > PIECE_BYTES
                or returned + reply > most_bytes
                or counted + length > limits.max_request_tokens
            )
            if piece and full:
                yield piece
                piece, sent, returned, counted = [], 0, 0, 0
            piece.append(text)
            sent, returned, counted = sent + size, returned + reply, counted + length
    except Exception:
        if piece:  # what came before the text that could not be read
            yield piece
        raise
    if piece:
        yield piece
