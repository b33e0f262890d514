"""The environment variables, read once at start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypeVar

from .errors import StartError

Device = Literal["auto", "cuda", "cpu"]
Dtype = Literal["auto", "float16", "float32", "int8"]
AttentionName = Literal["auto", "flash", "sdpa"]
EngineName = Literal["packed", "flagembedding"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["INFO", "DEBUG", "WARNING", "ERROR"]
Choice = TypeVar("Choice", bound=str)
Whole = TypeVar("Whole", int, int | None)

# A queue worker cannot tell whether a job came by `/run` (10 MB) or `/runsync` (20 MB), and RunPod
# silently drops a larger reply: so the smaller limit applies, less the envelope.
QUEUE_REPLY_BYTES = 9_500_000
# Read by the image's entry point and by the client.
OTHER_VARIABLES = ("BGE_MODE", "BGE_EMBEDDINGS_ENDPOINT", "BGE_RERANKER_ENDPOINT")
SERVER_REPLY_BYTES = 100_000_000  # the HTTP server has no platform's limit


@dataclass(frozen=True)
class Settings:
    """A model of None is not loaded; `max_batch_tokens` of None depends on the device."""

    embed_model: Path | None = Path("models/bge-m3")
    rerank_model: Path | None = Path("models/bge-reranker-v2-m3")
    device: Device = "auto"
    dtype: Dtype = "auto"
    engine: EngineName = "packed"
    attention: AttentionName = "auto"
    cuda_graphs: bool = True
    max_batch_tokens: int | None = None
    max_texts: int = 2048
    max_request_tokens: int = 1_000_000
    max_queue: int = 512
    max_reply_bytes: int = QUEUE_REPLY_BYTES
    concurrency: int = 32
    api_key: str | None = field(default=None, repr=False)
    insecure: bool = False
    accept_token_ids: bool = False
    embed_aliases: tuple[str, ...] = ()
    rerank_aliases: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    trace_start: bool = False
    page: bool = True
    log_format: LogFormat = "text"
    log_level: LogLevel = "INFO"

    @classmethod
    def from_env(cls, env: Mapping[str, str], max_reply_bytes: int = QUEUE_REPLY_BYTES) -> Settings:
        """Read every `BGE_…` variable of `env`. `max_reply_bytes` is that variable's default.

        Raises StartError: a value is not valid (names the variable), or no model is to be loaded.
        """
        settings = cls(
            embed_model=_folder(env, "BGE_EMBED_MODEL", cls.embed_model),
            rerank_model=_folder(env, "BGE_RERANK_MODEL", cls.rerank_model),
            device=_one_of(env, "BGE_DEVICE", ("auto", "cuda", "cpu")),
            dtype=_one_of(env, "BGE_DTYPE", ("auto", "float16", "float32", "int8")),
            attention=_one_of(env, "BGE_ATTENTION", ("auto", "flash", "sdpa")),
            cuda_graphs=_one_of(env, "BGE_CUDA_GRAPHS", ("1", "0")) == "1",
            engine=_one_of(env, "BGE_ENGINE", ("packed", "flagembedding")),
            max_batch_tokens=_integer(env, "BGE_MAX_BATCH_TOKENS", cls.max_batch_tokens),
            max_texts=_integer(env, "BGE_MAX_TEXTS", cls.max_texts),
            max_request_tokens=_integer(env, "BGE_MAX_REQUEST_TOKENS", cls.max_request_tokens),
            max_queue=_integer(env, "BGE_MAX_QUEUE", cls.max_queue),
            # At least one vector and its envelope must fit.
            max_reply_bytes=_integer(env, "BGE_MAX_REPLY_BYTES", max_reply_bytes, minimum=65536),
            # With one or two slots, the SDK sleeps a second whenever they are full.
            concurrency=_integer(env, "BGE_CONCURRENCY", cls.concurrency, minimum=3),
            api_key=_key(env, "BGE_API_KEY"),
            insecure=_one_of(env, "BGE_INSECURE", ("0", "1")) == "1",
            accept_token_ids=_one_of(env, "BGE_ACCEPT_TOKEN_IDS", ("0", "1")) == "1",
            embed_aliases=_names(env, "BGE_EMBED_ALIASES"),
            rerank_aliases=_names(env, "BGE_RERANK_ALIASES"),
            cors_origins=_names(env, "BGE_CORS_ORIGINS"),
            trace_start=_one_of(env, "BGE_TRACE_START", ("0", "1")) == "1",
            page=_one_of(env, "BGE_PAGE", ("0", "1") if _on_runpod(env) else ("1", "0")) == "1",
            log_format=_one_of(env, "BGE_LOG_FORMAT", ("text", "json")),
            log_level=_one_of(env, "BGE_LOG_LEVEL", ("INFO", "DEBUG", "WARNING", "ERROR")),
        )
        if settings.embed_model is None and settings.rerank_model is None:
            raise StartError("`BGE_EMBED_MODEL` and `BGE_RERANK_MODEL` are both empty: no model")
        if shared := {*settings.embed_aliases} & {*settings.rerank_aliases}:
            raise StartError(
                "`BGE_EMBED_ALIASES` and `BGE_RERANK_ALIASES` must differ. "
                f"Given in both: {min(shared)!r}"
            )
        return settings


def unknown_variables(env: Mapping[str, str]) -> list[str]:
    """Return a sentence for each `BGE_…` variable that nothing reads. Values are not quoted."""
    known = [f"BGE_{field.name.upper()}" for field in fields(Settings)] + [*OTHER_VARIABLES]
    sentences = []
    for name in sorted(env):
        if name.startswith("BGE_") and name not in known:
            nearest = get_close_matches(name, known, n=1, cutoff=0)[0]
            sentences.append(
                f"`{name[:60]}` is no variable of this worker. The nearest is `{nearest}`"
            )
    return sentences


def _on_runpod(env: Mapping[str, str]) -> bool:
    """Whether RunPod runs this worker: its platform sets the first, its load balancer the second.

    A load balancer's address is public, and each page that is opened starts a billed worker.
    """
    return "RUNPOD_ENDPOINT_ID" in env or "PORT_HEALTH" in env


def _folder(env: Mapping[str, str], name: str, default: Path | None) -> Path | None:
    value = env.get(name)
    if value is None:
        return default
    return Path(value) if value.strip() else None


def _one_of(env: Mapping[str, str], name: str, choices: tuple[Choice, ...]) -> Choice:
    """The first choice is the default."""
    value = env.get(name, choices[0])
    for choice in choices:
        if choice == value:
            return choice
    raise StartError(f"`{name}` must be one of {', '.join(choices)}. Given: {value!r}")


def _names(env: Mapping[str, str], name: str) -> tuple[str, ...]:
    """Return the comma-separated values, without surrounding white space."""
    values = (value.strip() for value in env.get(name, "").split(","))
    return tuple(value for value in values if value)


def _key(env: Mapping[str, str], name: str) -> str | None:
    """Return the key, None if it is empty. It must be valid in a header.

    Surrounding white space is dropped: a key read from a file ends with a newline.
    """
    value = env.get(name, "").strip()
    if not value.isascii() or not value.isprintable() or " " in value:
        raise StartError(f"`{name}` must be printable ASCII without spaces")
    return value or None


def _integer(env: Mapping[str, str], name: str, default: Whole, minimum: int = 1) -> Whole:
    value = env.get(name)
    if value is None:
        return default
    # At most 18 digits: Python's `int` refuses thousands with a traceback.
    if not value.isascii() or not value.isdigit() or len(value) > 18 or int(value) < minimum:
        given = repr(value) if len(value) <= 40 else f"{len(value)} characters"
        raise StartError(f"`{name}` must be a whole number, at least {minimum}. Given: {given}")
    return int(value)
