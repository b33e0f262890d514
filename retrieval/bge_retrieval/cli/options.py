"""Options that commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from bge_client import Client, ConfigurationError

from .. import Chunker, Schema, ServerTokenizer, Store, TokenizerFile
from ..chunks import OVERLAP, TOKENS
from ..tokens import Tokenizer

Command = TypeVar("Command", bound=Callable[..., Any])
WORKER_PRICE = 0.00019  # dollars per second of RunPod's 24 GB class, flex


def not_empty(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return the value of an option. Raises BadParameter if it is empty."""
    if value == "":
        raise click.BadParameter("must not be empty", context, parameter)
    return value


def with_store(unless: Sequence[str] = (), *, create: bool = False) -> Callable[[Command], Command]:
    """Add the `store` of --path, --qdrant-url or the environment to a command's arguments.

    If an option of `unless` is set, `store` is None. A missing folder is an error unless `create`.
    """

    def decorate(command: Command) -> Command:
        @click.option("--path", help="Folder of Qdrant's local mode.")
        @click.option("--qdrant-url", help="Address of a Qdrant server; overrides QDRANT_URL.")
        @wraps(command)
        def run(path: str | None, qdrant_url: str | None, **args: Any) -> None:
            if any(args.get(option) for option in unless):
                command(store=None, **args)
                return
            with Store.open(**store_address(path, qdrant_url, create=create)) as store:
                command(store=store, **args)

        return run  # type: ignore[return-value]

    return decorate


def store_address(path: str | None, qdrant_url: str | None, *, create: bool = False) -> Any:
    """Return the arguments of `Store.open`. A missing folder is an error unless `create`."""
    url = None if path else qdrant_url or os.environ.get("QDRANT_URL") or None
    if not path and not url:
        raise ConfigurationError("pass --path FOLDER or --qdrant-url, or set QDRANT_URL")
    if path and qdrant_url:
        raise ConfigurationError("pass either --path or --qdrant-url")
    if path and not create and not Path(path, "meta.json").exists():
        raise ConfigurationError(f"there are no collections in {path}")
    return {"url": url, "path": path, "api_key": os.environ.get("QDRANT_API_KEY") or None}


def schema_options(command: Command) -> Command:
    """Add the options of a new collection, as a `schema`."""

    @click.option(
        "--colbert", is_flag=True, help="Also store ColBERT vectors: 2 KB of disk for each token."
    )
    @click.option("--on-disk", is_flag=True, help="Store vectors, payloads and index on disk.")
    @click.option(
        "--quantization",
        type=click.Choice(["none", "scalar", "binary"]),
        default="none",
        show_default=True,
        help="Compressed copies of the dense vectors in memory.",
    )
    @click.option(
        "--colbert-quantization",
        type=click.Choice(["none", "scalar", "binary"]),
        default="none",
        show_default=True,
        help="Compressed copies of the ColBERT vectors in memory.",
    )
    @wraps(command)
    def run(
        colbert: bool, on_disk: bool, quantization: Any, colbert_quantization: Any, **args: Any
    ) -> None:
        command(schema=Schema(colbert, on_disk, quantization, colbert_quantization), **args)

    return run  # type: ignore[return-value]


tokenizer_option = click.option(
    "--tokenizer",
    type=click.Path(exists=True, dir_okay=False),
    help="The model's tokenizer.json. [default: the endpoint's /tokenize]",
)


def open_tokenizer(path: str | None, client: Client) -> Tokenizer:
    """Return the tokenizer of --tokenizer."""
    return TokenizerFile(path) if path else ServerTokenizer(client)


def chunk_options(command: Command) -> Command:
    """Add the options of chunks, as a `chunker`; None without --chunk. Needs the `client`."""

    @click.option("--chunk", is_flag=True, help="Cut the documents: each chunk is a point.")
    @click.option(
        "--chunk-tokens", type=int, help=f"Maximum tokens of a chunk, title included. [{TOKENS}]"
    )
    @click.option(
        "--chunk-overlap", type=int, help=f"Tokens that a chunk repeats of the last. [{OVERLAP}]"
    )
    @click.option("--title-field", help="Path of a text that begins every chunk.")
    @tokenizer_option
    @wraps(command)
    def run(
        chunk: bool,
        chunk_tokens: int | None,
        chunk_overlap: int | None,
        title_field: str | None,
        tokenizer: str | None,
        **args: Any,
    ) -> None:
        if not chunk:
            if {chunk_tokens, chunk_overlap, title_field, tokenizer} != {None}:
                raise ConfigurationError("options of chunks need --chunk")
            command(chunker=None, **args)
            return
        chunker = Chunker(
            open_tokenizer(tokenizer, args["client"]),
            tokens=TOKENS if chunk_tokens is None else chunk_tokens,
            overlap=OVERLAP if chunk_overlap is None else chunk_overlap,
            title_field=title_field,
        )
        command(chunker=chunker, **args)

    return run  # type: ignore[return-value]


text_fields_option = click.option(
    "--text-field",
    "text_fields",
    multiple=True,
    help="Path of the text in a document: text, page.content, chunks.0.text. Repeatable; the texts "
    "are joined. [default: text]",
)


def price_option(name: str, default: float, unit: str) -> Callable[[Command], Command]:
    return click.option(
        name,
        default=default,
        show_default=True,
        type=click.FloatRange(0),
        help=f"Dollars per {unit}.",
    )


def collection_option(help: str, *, required: bool = True) -> Callable[[Command], Command]:
    return click.option("--collection", callback=not_empty, required=required, help=help)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


def text_options(command: Command) -> Command:
    max_length = click.option("--max-length", type=int, help="Truncate texts to this many tokens.")
    return text_fields_option(max_length(command))
