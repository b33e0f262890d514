"""Split texts into chunks that fit the limits of a worker and of the platform.

Token counts are estimated, high for Russian and English. A chunk still too large is halved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .codec import EmbedOptions

# Well below RunPod's own (10 MB by /run, 20 MB by /runsync), and enough for a worker to be busy
# for seconds: larger chunks would leave other workers idle and cost more to send again.
MAX_CHUNK_TEXTS = 256
MAX_CHUNK_BYTES = 4_000_000
CHARACTERS_PER_TOKEN = 2.5
DIMENSIONS = 1024  # bge-m3's
RANKED_DOCUMENT_BYTES = 80  # of one document in the reply to a rerank request


@dataclass(frozen=True)
class Limits:
    """The limits of a worker, by default the contract's."""

    max_texts: int = 2048
    max_request_tokens: int = 1_000_000
    max_reply_bytes: int = 9_500_000

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Limits:
        """Read the limits in a worker's `info`. Invalid or missing ones get their defaults."""
        limits = info.get("limits")
        limits = limits if isinstance(limits, dict) else {}
        names = ("max_texts", "max_request_tokens", "max_reply_bytes")
        return cls(**{n: limits[n] for n in names if type(limits.get(n)) is int and limits[n] > 0})


def estimate_tokens(text: str, max_length: int | None) -> int:
    return min(max_length or 8192, 2 + int(len(text) / CHARACTERS_PER_TOKEN))


def estimate_reply_bytes(text: str, options: EmbedOptions) -> int:
    """Estimate how many bytes the vectors of `text` take in a reply."""
    vector = DIMENSIONS * (2 if options.dtype == "float16" else 4) * 4 // 3
    tokens = estimate_tokens(text, options.max_length)
    return (
        options.dense * (vector + 8)
        + options.sparse * (32 + 20 * tokens)
        + options.colbert * (64 + vector * tokens)
    )


def split_texts(
    texts: Iterable[str],
    limits: Limits,
    reply_bytes: Callable[[str], int],
    tokens: Callable[[str], int],
) -> Iterator[list[str]]:
    """Yield chunks of consecutive texts lazily. A text over a limit gets a chunk of its own.

    If reading `texts` fails, the chunk read so far is yielded before the error is raised.
    """
    max_texts = min(MAX_CHUNK_TEXTS, limits.max_texts)
    max_reply_bytes = min(MAX_CHUNK_BYTES, limits.max_reply_bytes)
    chunk: list[str] = []
    chunk_size = chunk_reply = chunk_tokens = 0
    try:
        for text in texts:
            size, reply, length = len(text.encode()) + 4, reply_bytes(text), tokens(text)
            is_full = (
                len(chunk) == max_texts
                or chunk_size + size > MAX_CHUNK_BYTES
                or chunk_reply + reply > max_reply_bytes
                or chunk_tokens + length > limits.max_request_tokens
            )
            if chunk and is_full:
                yield chunk
                chunk, chunk_size, chunk_reply, chunk_tokens = [], 0, 0, 0
            chunk.append(text)
            chunk_size += size
            chunk_reply += reply
            chunk_tokens += length
    except Exception:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk
