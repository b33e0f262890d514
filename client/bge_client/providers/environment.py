"""Routes and providers from the variables of the environment.

    EMBEDDINGS_PROVIDER        bge, auto, or the name of another provider
    EMBEDDINGS_FALLBACKS       names of others, in order, separated by commas
    EMBEDDINGS_FALLBACK_TO_JINA=true   jina as the last of them

and the same for RERANKER. Of a provider DEEPINFRA: DEEPINFRA_API_KEY, and if they are not those of
`presets.py`, DEEPINFRA_BASE_URL, DEEPINFRA_EMBEDDING_MODEL and DEEPINFRA_RERANK_MODEL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..client import Client
from ..endpoint import endpoint_from, http_url, key_from
from ..errors import ConfigurationError
from ..redaction import read_secret
from . import Provider
from .chain import Route
from .endpoint import Endpoint
from .jina import JinaClient
from .openai_compatible import OpenAICompatible
from .presets import PRESETS
from .probe import Probe

Kind = Literal["EMBEDDINGS", "RERANKER"]
ROUTE_NAMES = {"EMBEDDINGS": "embeddings", "RERANKER": "scores"}
HOSTS = tuple(PRESETS)
NAMES = ("bge", "jina", *HOSTS)
FALLBACK_RETRIES = 2


@dataclass(frozen=True)
class Settings:
    """What the providers of one kind of request are made with."""

    env: Mapping[str, str]
    kind: Kind
    timeout: float = 300.0
    probe: Probe | None = None
    max_retries: float | None = None
    check_health: bool = False


def route_from(
    env: Mapping[str, str], kind: Kind, timeout: float, probe: Probe | None = None
) -> Route:
    """Return the route of one kind of request.

    Raises:
        ConfigurationError: a variable is missing or invalid. The message names it.
    """
    first = _choice(env, f"{kind}_PROVIDER", ("bge", "auto", *NAMES[1:]))
    fallbacks = [name.strip() for name in env.get(f"{kind}_FALLBACKS", "").split(",")]
    fallbacks = [_checked(name, f"{kind}_FALLBACKS", NAMES) for name in fallbacks if name]
    if _choice(env, f"{kind}_FALLBACK_TO_JINA", ("false", "true")) == "true":
        fallbacks.append("jina")
    is_auto = first == "auto"
    later = fallbacks or (["jina"] if is_auto else [])
    names = dict.fromkeys(["bge" if is_auto else first, *later])  # each once, in order
    settings = Settings(env, kind, timeout, probe, check_health=is_auto)
    # The next one answers sooner than a provider that is down or over its limit is back.
    eager = replace(settings, max_retries=FALLBACK_RETRIES) if fallbacks else settings
    *before, last = names
    providers = [*(provider_from(name, eager) for name in before), provider_from(last, settings)]
    return Route(ROUTE_NAMES[kind], providers, fallback=bool(fallbacks))


def provider_from(name: str, settings: Settings) -> Provider:
    """Return the provider with this name. Raises as `route_from`."""
    env, timeout, max_retries = settings.env, settings.timeout, settings.max_retries
    if name == "bge":
        url = endpoint_from(env, settings.kind)
        if url is None:
            raise ConfigurationError(f"`BGE_{settings.kind}_ENDPOINT` is not set")
        key = key_from(env, url) or ""  # "": the client reads no other environment
        client = Client(url, key, timeout=timeout, max_retries=max_retries)
        return Endpoint(client, check_health=settings.check_health)
    if name == "jina":
        key = env.get("JINA_API_KEY", "")
        return JinaClient(key, timeout=timeout, max_retries=max_retries)
    return _host(name, settings)


def _host(name: str, settings: Settings) -> OpenAICompatible:
    env, preset, prefix = settings.env, PRESETS[name], name.upper()
    models = {
        "EMBEDDINGS": env.get(f"{prefix}_EMBEDDING_MODEL") or preset.embedding_model,
        "RERANKER": env.get(f"{prefix}_RERANK_MODEL") or preset.rerank_model,
    }
    if models[settings.kind] is None:
        variable = f"{prefix}_{'EMBEDDING' if settings.kind == 'EMBEDDINGS' else 'RERANK'}_MODEL"
        kind = ROUTE_NAMES[settings.kind]
        raise ConfigurationError(f"{name} has no model for the {kind}: set `{variable}`")
    key = read_secret(env.get(f"{prefix}_API_KEY"), f"{prefix}_API_KEY")
    if preset.needs_key and key is None:
        raise ConfigurationError(f"set `{prefix}_API_KEY` to use {name}")
    try:
        base = env.get(f"{prefix}_BASE_URL") or preset.base.format_map(env)
    except KeyError as error:
        raise ConfigurationError(f"set `{error.args[0]}` to use {name}") from None
    return OpenAICompatible(
        name,
        http_url(base, f"{prefix}_BASE_URL"),
        key,
        embedding_model=models["EMBEDDINGS"],
        rerank_model=models["RERANKER"],
        max_texts=preset.max_texts,
        timeout=settings.timeout,
        max_retries=settings.max_retries,
        probe=settings.probe,
    )


def probe_from(env: Mapping[str, str]) -> Probe | None:
    """Return the probe in the file `BGE_PROBE`, if that is set."""
    path = env.get("BGE_PROBE")
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            return Probe.loads(file.read())
    except OSError as error:
        raise ConfigurationError(f"`BGE_PROBE` cannot be read: {error.strerror}") from None


def _choice(env: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    """Read a variable; the first choice is the default. Raises ConfigurationError if invalid."""
    return _checked(env.get(name) or choices[0], name, choices)


def _checked(value: str, name: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ConfigurationError(f"`{name}` must be one of {', '.join(choices)}. Given: {value!r}")
    return value
