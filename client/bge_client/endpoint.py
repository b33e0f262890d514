"""Addresses of endpoints, and the environment variables that name them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from .errors import ConfigurationError
from .redaction import read_secret

KINDS = ("EMBEDDINGS", "RERANKER")
KEY_VARIABLES = ("BGE_API_KEY", "RUNPOD_API_KEY")
# Of load-balancing endpoints: `<id>.api.runpod.ai`. Every other address takes jobs.
LOAD_BALANCER_DOMAIN = ".api.runpod.ai"
RUNPOD_DOMAINS = (".runpod.ai", ".runpod.net")
# What addresses of the endpoint's routes and of OpenAI's clients end with.
SUFFIXES = ("/runsync", "/run", "/openai/v1", "/v1")


def endpoint_from(env: Mapping[str, str], kind: str = "EMBEDDINGS") -> str | None:
    """Return the address for one of KINDS, else for the other. One endpoint usually serves both.

    `RUNPOD_…` takes precedence.
    """
    names = [f"{owner}_{k}_ENDPOINT" for k in (kind, *KINDS) for owner in ("RUNPOD", "BGE")]
    return next((env[name] for name in names if env.get(name)), None)


def key_from(env: Mapping[str, str], url: str) -> str | None:
    """Return the API key for an endpoint: RunPod's first if RunPod serves it, else the server's."""
    host = urlsplit(url).hostname or ""
    is_runpod = f".{host}".endswith(RUNPOD_DOMAINS)
    names = KEY_VARIABLES[::-1] if is_runpod else KEY_VARIABLES
    keys = (read_secret(env.get(name), name) for name in names)
    return next((key for key in keys if key), None)


def is_load_balancer(url: str) -> bool:
    """Return whether an address is that of a load-balancing endpoint, which has no queue."""
    return (urlsplit(url).hostname or "").endswith(LOAD_BALANCER_DOMAIN)


def base_url(url: str) -> str:
    """Return the address of an endpoint without a trailing `/runsync`, `/run` or `/v1`.

    Raises:
        ConfigurationError: as `http_url`.
    """
    origin, path = _origin_and_path(url, "endpoint")
    for suffix in SUFFIXES:
        path = path.removesuffix(suffix)
    return origin + path


def http_url(url: str, name: str) -> str:
    """Return an address without a trailing slash.

    Raises:
        ConfigurationError: it is no http(s) address, or holds credentials. The message has `name`
            and does not quote the address.
    """
    return "".join(_origin_and_path(url, name))


def _origin_and_path(url: str, name: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url.strip())
        is_http = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_valid = is_http and parts.port != 0 and not re.search(r"\s", parts.netloc)
    except ValueError:  # its message quotes the password
        is_valid = False
    if not is_valid:
        raise ConfigurationError(
            f"`{name}` must be an http(s) address, like https://api.runpod.ai/v2/<id>"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError(f"`{name}` must hold neither a user, a query nor a fragment")
    return f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
