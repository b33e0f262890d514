"""Secrets: read once, and removed from every text that comes from elsewhere.

A library's error may quote the key or the URL it was given. Every message, log line and exception
that holds such a text passes through `redact`.
"""

from __future__ import annotations

import logging
import re
import traceback
from urllib.parse import quote

MASK = "***"
MIN_SECRET_LENGTH = 8  # a shorter one would also be found inside ordinary words
_USER_INFO = re.compile(r"(?<=://)[^/?#\s\"'<>,]*@")  # `user:password@` of a URL
_secrets: set[str] = set()  # of this process: a key is removed whoever quotes it


def read_secret(value: str | None, name: str) -> str | None:
    """Return `value` without white space at its edges, None if nothing is left.

    A key that is read from a file often ends with a newline. From now on `redact` removes it.

    Raises:
        ConfigurationError: no HTTP header can carry it; names it and does not quote it.
    """
    secret = (value or "").strip()
    if not secret:
        return None
    from .errors import ConfigurationError  # here: every error redacts its message

    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise ConfigurationError(f"`{name}` must be printable ASCII without spaces")
    if len(secret) >= MIN_SECRET_LENGTH:
        _secrets.add(secret)
        _secrets.add(quote(secret, safe=""))
    return secret


def redact(text: str) -> str:
    """Return `text` with every known secret and every user name and password of a URL masked."""
    text = _USER_INFO.sub(f"{MASK}@", text)
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


class RedactingFilter(logging.Filter):
    """Redacts the log lines of other packages: add it to a handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # the handler reports a call that is wrong
            return True
        if (redacted := redact(message)) != message:
            record.msg, record.args = redacted, ()
        if record.exc_info:  # a formatter takes the text that it finds here
            lines = traceback.format_exception(*record.exc_info)
            record.exc_text = redact("".join(lines)).rstrip("\n")
        return True
