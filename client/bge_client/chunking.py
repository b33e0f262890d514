"""Split texts into chunks that fit the limits of a worker and of the platform.

Token counts are estimated, high for Russian and English. A chunk still too large is halved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

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
    def of(cls, info: Mapping[str, object]) -> Limits:
        """Read the limits in a worker's `info`. Invalid or missing ones get their defaults."""
        limits = info.get("limits")
        limits = limits if isinstance(limits, dict) else {}
        names = ("max_texts", "max_request_tokens", "max_reply_bytes")
        return cls(**{n: limits[n] for n in names if type(limits.get(n)) is int and limits[n] > 0})


def estimate_tokens(text: str, max_length: int | None) -> int:
    return min(max_length or 8192, 2 + int(len(text) / CHARACTERS_PER_TOKEN))


def estimate_reply_bytes(text: str, options: EmbedOptions) -> int:
    """Estimate how many bytes the vectors of `text` take in a reply."""
    vector = DIMENSIONS * (2 if options.wire_dtype == "float16" else 4) * 4 // 3
    tokens = estimate_tokens(text, options.max_length)
    return (
        options.dense * (vector + 8)
        + options.sparse * (32 + 20 * tokens)
        + options.colbert * (64 + vector * tokens)
    )


class Cost(NamedTuple):
    """What a text adds to a request, estimated."""

    reply_bytes: int
    tokens: int


class Chunks(Iterator[list[str]]):
    """Chunks of consecutive texts, read lazily. A text over a limit gets a chunk of its own.

    `limits` may be changed between chunks. If reading `texts` fails, the texts read so far are
    returned before the error is raised.
    """

    def __init__(
        self, texts: Iterable[str], cost: Callable[[str], Cost], limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        self._texts = iter(texts)
        self._cost = cost
        self._read_ahead: deque[tuple[str, Cost]] = deque()
        self._error: Exception | None = None

    def is_single(self) -> bool:
        """Return whether all texts that are left fit one chunk. Reads one chunk ahead."""
        length = self._next_length()
        return len(self._read_ahead) == length

    def __next__(self) -> list[str]:
        chunk = [self._read_ahead.popleft()[0] for _ in range(self._next_length())]
        if not chunk:
            raise self._error or StopIteration
        return chunk

    def _next_length(self) -> int:
        """Return the number of texts of the next chunk. Reads one more, if there is one."""
        max_texts = min(MAX_CHUNK_TEXTS, self.limits.max_texts)
        max_reply_bytes = min(MAX_CHUNK_BYTES, self.limits.max_reply_bytes)
        size = reply_bytes = tokens = length = 0
        while length < len(self._read_ahead) or self._read():
            text, cost = self._read_ahead[length]
            size += len(text.encode()) + 4
            reply_bytes += cost.reply_bytes
            tokens += cost.tokens
            is_over = (
                length == max_texts
                or size > MAX_CHUNK_BYTES
                or reply_bytes > max_reply_bytes
                or tokens > self.limits.max_request_tokens
            )
            if length and is_over:
                break
            length += 1
        return length

    def _read(self) -> bool:
        """Read one text. Returns False at the end."""
        try:
            text = next(self._texts)
        except StopIteration:
            return False
        except Exception as error:
            self._error, self._texts = error, iter(())
            return False
        self._read_ahead.append((text, self._cost(text)))
        return True
