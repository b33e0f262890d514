"""What a text must be before it is tokenised. Imports no torch: requests are read before it."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ValidationError

# Of a text: 100 times the model's input. A text is tokenised in one piece before it is truncated,
# which takes about half a second for so many.
MAX_CHARACTERS = 1_000_000
MIN_TEXT_LENGTH = 3  # tokens: <s>, a token, </s>
MAX_LENGTH = 8192  # tokens of a text


def check_text(text: str, field: str, index: int | None = None, member: str = "") -> None:
    """Check the text at `field[index].member`, whose type and length are known to be right.

    Raises:
        ValidationError: the text is empty, blank, or holds a lone surrogate, which can be neither
            tokenised nor sent back.
    """
    if text.isascii() and text and not text.isspace():
        return
    fault = ""
    if not text or text.isspace():
        given = "a string of white space" if text else "an empty string"
        fault = f"must not be empty or blank. Given: {given}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        fault = f"must be valid Unicode. Given: a lone surrogate at character {error.start}"
    if fault:
        name = field if index is None else f"{field}[{index}]{member}"
        raise ValidationError(f"`{name}` {fault}", field=field, index=index)


def check_texts(texts: Sequence[str], max_length: int) -> None:
    """Check the arguments of a Python caller.

    Raises ValidationError: a text is no string, too long, blank or not valid Unicode, or
        `max_length` leaves no room for a token.
    """
    if isinstance(texts, str | bytes):
        raise ValidationError("`texts` must be a list of strings, not one", field="texts")
    for index, text in enumerate(texts):
        fault = None
        if not isinstance(text, str):
            fault = f"must be a string. Given: {type(text).__name__}"
        elif len(text) > MAX_CHARACTERS:
            fault = f"must have at most {MAX_CHARACTERS} characters. Given: {len(text)}"
        if fault is not None:
            raise ValidationError(f"`texts[{index}]` {fault}", field="texts", index=index)
        check_text(text, "texts", index)
    if max_length < MIN_TEXT_LENGTH:
        message = f"`max_length` must be at least {MIN_TEXT_LENGTH}. Given: {max_length}"
        raise ValidationError(message, field="max_length", limit=MIN_TEXT_LENGTH)
