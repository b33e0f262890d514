"""Connect to a Qdrant server, or open a folder in Qdrant's local mode."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from qdrant_client import AsyncQdrantClient, QdrantClient

from bge_client import ConfigurationError
from bge_client.redaction import read_secret

AnyClient = TypeVar("AnyClient", QdrantClient, AsyncQdrantClient)


def connect(kind: type[AnyClient], url: str, api_key: str | None, timeout: int) -> AnyClient:
    """Return a client of the server at `url`. Sends nothing yet.

    Raises:
        ConfigurationError: the `url` or the key is invalid. The message quotes neither.
    """
    key, url = read_secret(api_key, "QDRANT_API_KEY"), url.strip()
    host = _checked_host(url if "://" in url else f"//{url}")
    with warnings.catch_warnings():
        if host in ("localhost", "127.0.0.1", "::1"):
            warnings.simplefilter("ignore", UserWarning)  # a key over plain HTTP
        try:
            return kind(url=url, api_key=key, timeout=timeout, check_compatibility=False)
        except ValueError as error:
            raise ConfigurationError(f"the Qdrant server's `url` is invalid: {error}") from None


def open_folder(path: str | Path) -> QdrantClient:
    """Open the folder of Qdrant's local mode, creating it.

    Raises:
        ConfigurationError: the folder is corrupt or open in another process.
    """
    try:
        return QdrantClient(path=os.fspath(path))
    except OSError:
        raise
    except Exception as error:  # a corrupt meta.json or SQLite file raises any type
        if "already accessed" in str(error):
            raise ConfigurationError(
                f"{path} is open in another process. Qdrant's local mode allows one process; "
                "for several, run a Qdrant server and set `QDRANT_URL`"
            ) from None
        raise ConfigurationError(
            f"{path} cannot be read as a folder of Qdrant's local mode: {type(error).__name__}"
        ) from None


def _checked_host(url: str) -> str | None:
    """Return the host of an address.

    Raises:
        ConfigurationError: it is invalid or holds credentials. The message does not quote it.
    """
    try:
        parts = urlsplit(url)
        is_valid = bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", parts.netloc)
    except ValueError:  # its message quotes the password
        is_valid = False
    if not is_valid:
        raise ConfigurationError("`url` must be an http(s) address, like http://localhost:6333")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError("`url` must hold neither a user, a query nor a fragment")
    return parts.hostname
