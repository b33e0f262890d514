"""What every command of `bge` has: its client, and a sentence and an exit code for each error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ..client import Client
from ..errors import (
    AuthenticationError,
    BGEError,
    ConfigurationError,
    DeadlineError,
    FingerprintError,
    MigrationError,
    ProtocolError,
)
from ..router import endpoint_of

# Of several that fit, the first; of the rest, what may pass is 4 and what will not 1.
EXIT_CODES: list[tuple[type[BGEError], int]] = [
    (ConfigurationError, 2),
    (AuthenticationError, 3),
    (DeadlineError, 4),
    (ProtocolError, 5),
    (FingerprintError, 5),
    (MigrationError, 6),
]
Command = TypeVar("Command", bound=Callable[..., Any])
UTF8 = click.File("r", encoding="utf-8-sig")


def connected(
    kind: str, unless: tuple[str, ...] = (), *, reranking: bool = False
) -> Callable[[Command], Command]:
    """Give a command its `client` for EMBEDDINGS or RERANKER, and its errors their exit codes.

    With one of the flags `unless`, the command needs no endpoint and gets None. With `reranking`,
    it also gets a `reranker`: the endpoint that the environment names for it, unless --endpoint
    is given, which is for both.
    """

    def decorate(command: Command) -> Command:
        @click.option("--endpoint", help="Address of the endpoint, instead of the environment's.")
        @click.option(
            "--timeout", default=300.0, show_default=True, help="Seconds for one request."
        )
        @click.option("--in-flight", default=8, show_default=True, help="Requests open at once.")
        @wraps(command)
        def run(endpoint: str | None, timeout: float, in_flight: int, **given: Any) -> None:
            def client(kind: str) -> Client:
                url = endpoint or endpoint_of(os.environ, kind)
                url = url or endpoint_of(os.environ, "EMBEDDINGS")
                if url is None:
                    raise ConfigurationError(f"say --endpoint, or set BGE_{kind}_ENDPOINT")
                key = os.environ.get("RUNPOD_API_KEY") or None
                made = Client(url, key, timeout=timeout, max_in_flight=in_flight)
                return stack.enter_context(made)

            with exit_codes(), ExitStack() as stack:
                free = any(given.get(flag) for flag in unless)
                asked = "RERANKER" if given.get("reranker") is True else kind
                if reranking:
                    given["reranker"] = None if free else client("RERANKER")
                command(client=None if free else client(asked), **given)

        return run  # type: ignore[return-value]

    return decorate


def refuse_unused(allowed: Iterable[str], what: str) -> None:
    """Raises ConfigurationError: an option was given that means nothing here."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and parameter.name not in allowed:
            raise ConfigurationError(f"{parameter.opts[0]} means nothing {what}")


class exit_codes(AbstractContextManager[None]):
    """A sentence on stderr and an exit code in place of a traceback."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BGEError):
            codes = (code for kind, code in EXIT_CODES if isinstance(error, kind))
            code = next(codes, 4 if error.retry else 1)
            click.echo(f"bge: {type(error).__name__}: {error}", err=True)
            sys.exit(code)
        if isinstance(error, KeyboardInterrupt):
            click.echo("bge: interrupted", err=True)
            sys.exit(130)
        if isinstance(error, BrokenPipeError):  # `bge embed … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        if isinstance(error, UnicodeDecodeError):
            click.echo(f"bge: the input is not UTF-8: {error.reason}", err=True)
            sys.exit(2)
        if isinstance(error, OSError):
            click.echo(f"bge: {error.filename}: {error.strerror}", err=True)
            sys.exit(2)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Raises ConfigurationError: what is imported in here is not installed; says how to."""
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(
            f"this needs {error.name or 'more'}: pip install 'bge-client[cli,{extra}]'"
        ) from None
