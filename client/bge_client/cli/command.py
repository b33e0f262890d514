"""Shared by all commands of `bge`: the client, and a message and an exit code for each error."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from functools import wraps
from typing import Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from ..client import Client
from ..endpoint import endpoint_from
from ..errors import (
    AuthenticationError,
    BGEError,
    ConfigurationError,
    DeadlineError,
    FingerprintError,
    ProtocolError,
)
from ..redaction import redact

# The first match applies. Any other error is its `exit_code`, or 4 if it is transient, else 1.
EXIT_CODES: list[tuple[type[BGEError], int]] = [
    (ConfigurationError, 2),
    (AuthenticationError, 3),
    (DeadlineError, 4),
    (ProtocolError, 5),
    (FingerprintError, 5),
]
CONTROL_CHARACTERS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])
CLICK_ERRORS = (click.ClickException, click.exceptions.Exit, click.Abort)
Command = TypeVar("Command", bound=Callable[..., Any])
UTF8 = click.File("r", encoding="utf-8-sig")


def connected(
    kind: str, unless: tuple[str, ...] = (), *, reranking: bool = False
) -> Callable[[Command], Command]:
    """Pass a command its `client` for EMBEDDINGS or RERANKER, and map its errors to exit codes.

    If one of the options `unless` is set, the command needs no endpoint, and `client` is None. With
    `reranking`, it also gets a `reranker`. --endpoint applies to both, the environment to each.
    """

    def decorate(command: Command) -> Command:
        @click.option("--endpoint", help="Address of the endpoint. Overrides the environment.")
        @click.option(
            "--timeout", default=300.0, show_default=True, help="Seconds for one request."
        )
        @click.option(
            "--in-flight",
            default=8,
            show_default=True,
            type=click.IntRange(1),
            help="Concurrent requests.",
        )
        @wraps(command)
        def run(endpoint: str | None, timeout: float, in_flight: int, **options: Any) -> None:
            def connect(kind: str) -> Client:
                url = endpoint or endpoint_from(os.environ, kind)
                if url is None:
                    raise ConfigurationError(f"pass --endpoint, or set BGE_{kind}_ENDPOINT")
                client = Client(url, timeout=timeout, max_in_flight=in_flight)
                return stack.enter_context(client)

            with exit_codes(), ExitStack() as stack:
                is_offline = any(options.get(flag) for flag in unless)
                client_kind = "RERANKER" if options.get("reranker") is True else kind
                if reranking:
                    options["reranker"] = None if is_offline else connect("RERANKER")
                command(client=None if is_offline else connect(client_kind), **options)

        return run  # type: ignore[return-value]

    return decorate


def refuse_unused(allowed: Iterable[str], condition: str) -> None:
    """Raises ConfigurationError if an option was passed that is not `allowed` and so has no effect
    under `condition`."""
    names = {parameter.name or "" for parameter in click.get_current_context().command.params}
    refuse(names - set(allowed), condition)


def refuse(names: Iterable[str], condition: str) -> None:
    """Raises ConfigurationError if one of these options was passed: none has an effect under
    `condition`."""
    context = click.get_current_context()
    for parameter in context.command.params:
        is_given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if is_given and parameter.name in names:
            is_argument = isinstance(parameter, click.Argument)
            name = parameter.human_readable_name if is_argument else parameter.opts[0]
            raise ConfigurationError(f"{name} means nothing {condition}")


def plain(text: str) -> str:
    """Return a text as one line without control characters, which could command the terminal."""
    return " ".join(text.split()).translate(CONTROL_CHARACTERS)


def _exit(message: str, code: int) -> NoReturn:
    click.echo(f"bge: {redact(message)}", err=True)
    sys.exit(code)


class exit_codes(AbstractContextManager[None]):
    """Print a message and exit with a code instead of a traceback.

    An unexpected error keeps its traceback, redacted: an error of a library may quote a key.
    """

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BGEError):
            codes = (code for kind, code in EXIT_CODES if isinstance(error, kind))
            default = getattr(error, "exit_code", 4 if error.retry else 1)
            code = next(codes, default)
            _exit(f"{type(error).__name__}: {error}", code)
        if isinstance(error, KeyboardInterrupt):
            _exit("interrupted", 130)
        if isinstance(error, BrokenPipeError):  # `bge embed … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        if isinstance(error, UnicodeDecodeError):
            _exit(f"the input is not UTF-8: {error.reason}", 2)
        if isinstance(error, UnicodeEncodeError):
            _exit(f"stdout cannot encode the output as {error.encoding}", 2)
        if isinstance(error, OSError):
            prefix = f"{error.filename}: " if error.filename is not None else ""
            _exit(f"{prefix}{error.strerror or error}", 2)
        if isinstance(error, Exception) and not isinstance(error, CLICK_ERRORS):
            _exit("".join(traceback.format_exception(error)), 1)
