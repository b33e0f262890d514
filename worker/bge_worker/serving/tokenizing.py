"""Tokens as a reply, for routes that need no inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import TooLargeError

if TYPE_CHECKING:
    from ..engine.tokenizer import Token, Tokenizer

MAX_TOKENS = 200_000  # of a reply: as objects some 100 MB
MAX_CHARACTERS = 1_000_000  # of all texts: half a second of one core


def tokenize_texts(
    tokenizer: Tokenizer, texts: Sequence[str], field: str, *, add_special_tokens: bool
) -> list[list[Token]]:
    """Return the tokens of every text, never truncated.

    Raises TooLargeError: the texts have too many characters or tokens for one reply.
    """
    characters = sum(map(len, texts))
    if characters > MAX_CHARACTERS:
        raise too_large(field, MAX_CHARACTERS, "characters", characters)
    lists: list[list[Token]] = []
    total = 0
    for text in texts:
        lists.append(tokenizer.tokenize(text, add_special_tokens=add_special_tokens))
        total += len(lists[-1])
        if total > MAX_TOKENS:
            raise too_large(field, MAX_TOKENS, "tokens", total)
    return lists


def too_large(field: str, limit: int, unit: str, given: int) -> TooLargeError:
    return TooLargeError(
        f"`{field}` must have at most {limit} {unit}. Given: {given} or more",
        field=field,
        limit=limit,
    )
