"""Register secrets, and mask them in messages, log lines and exceptions.

An error of a library may quote a key or a URL with a password. Every text from outside passes
through `redact` before it is shown.
"""

from __future__ import annotations

import logging
import re
import traceback
from urllib.parse import quote

MASK = "***"
MIN_SECRET_LENGTH = 8  # a shorter one may occur in ordinary words
_USER_INFO = re.compile(r"(?<=://)[^/?#\s\"'<>,]*@")  # `user:password@` of a URL
_secrets: set[str] = set()  # of the whole process, whichever client read them


def read_secret(value: str | None, name: str) -> str | None:
    """Return `value` stripped of white space, or None if it is empty, and register it for `redact`.

    A key read from a file often ends with a newline.

    Raises:
        ConfigurationError: an HTTP header cannot carry it. The message does not quote it.
    """
    secret = (value or "").strip()
    if not secret:
        return None
    from .errors import ConfigurationError  # circular: errors imports redact

    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise ConfigurationError(f"`{name}` must be printable ASCII without spaces")
    if len(secret) >= MIN_SECRET_LENGTH:
        _secrets.add(secret)
        _secrets.add(quote(secret, safe=""))
    return secret


def redact(text: str) -> str:
    """Mask every registered secret and the credentials of every URL in `text`."""
    text = _USER_INFO.sub(f"{MASK}@", text)
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


class RedactingFilter(logging.Filter):
    """Redacts log records. Add it to a handler to cover other packages too."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # a malformed call: the handler reports it
            return True
        if (redacted := redact(message)) != message:
            record.msg, record.args = redacted, ()
        if record.exc_info:  # a formatter uses this text if it is set
            lines = traceback.format_exception(*record.exc_info)
            record.exc_text = redact("".join(lines)).rstrip("\n")
        return True
