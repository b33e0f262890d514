"""`bge info`, `health`, `warm-up`: commands about the endpoint and its workers."""

from __future__ import annotations

import json
import sys
import time

import click

from ..client import Client
from ..errors import BGEError
from ..state import EndpointState, endpoint_state
from .command import connected


@click.command()
@click.option("--reranker", is_flag=True, help="Use the endpoint for reranking.")
@connected("EMBEDDINGS")
def info(client: Client, reranker: bool) -> None:
    """Print the models and limits of the endpoint. Starts a worker."""
    click.echo(json.dumps(client.info(), indent=2, ensure_ascii=False))


@click.command()
@click.option("--reranker", is_flag=True, help="Use the endpoint for reranking.")
@connected("EMBEDDINGS")
def health(client: Client, reranker: bool) -> None:
    """Print jobs and workers of the endpoint as JSON, and on stderr what that means.

    Exit code 4 if it cannot answer.
    """
    response = client.health()
    click.echo(json.dumps(response, indent=2))
    state = endpoint_state(response)
    click.echo(f"The endpoint is {state.value}.", err=True)
    if state is EndpointState.BROKEN:
        sys.exit(4)


@click.command("warm-up")
@click.option("--reranker", is_flag=True, help="Use the endpoint for reranking.")
@click.option(
    "--wait", default=600.0, show_default=True, help="Seconds to wait; --timeout is not used."
)
@connected("EMBEDDINGS")
def warm_up(client: Client, reranker: bool, wait: float) -> None:
    """Start a worker, and wait until it answers. Exit code 4 if none does.

    \b
      bge warm-up --wait 900 && bge embed texts.txt -o vectors.jsonl
    """
    start = time.monotonic()
    try:
        state = endpoint_state(client.health()).value
    except BGEError as error:
        if not error.retry:
            raise
        state = f"not known: {error}"
    click.echo(f"The endpoint is {state}. Waiting up to {wait:g} s for a worker.", err=True)
    client.warm_up(wait)
    click.echo(f"Ready after {time.monotonic() - start:.1f} s.")
