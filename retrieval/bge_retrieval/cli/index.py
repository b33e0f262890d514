"""`bge index`."""

from __future__ import annotations

from typing import IO

import click

from bge_client import Client
from bge_client.cli import connected, count_lines, progress_bar

from .. import Chunker, Schema, Store
from .. import index as index_documents
from .options import chunk_options, collection_option, schema_options, text_options, with_store
from .output import print_json


@click.command()
@click.argument("source", type=click.File("r", encoding="utf-8-sig"), default="-")
@collection_option("Created if it does not exist.")
@text_options
@connected("EMBEDDINGS")
@with_store(create=True)
@schema_options
@chunk_options
def index(
    client: Client,
    store: Store,
    source: IO[str],
    collection: str,
    text_fields: tuple[str, ...],
    max_length: int | None,
    schema: Schema,
    chunker: Chunker | None,
) -> None:
    """Embed the JSON objects in SOURCE, one per line, and write them as points.

    Each object becomes the payload of a point. The point's id is derived from `_id` or `id`. After
    a failure, run it again: it skips the documents that are already indexed.

    \b
      bge index corpus.jsonl --collection courses --path qdrant-data
      bge index books.jsonl --collection books --chunk --title-field title
    """
    # How many chunks there will be is not known.
    bar = progress_bar("chunks") if chunker else progress_bar("documents", count_lines(source))
    with bar:
        report = index_documents(
            store,
            client,
            collection,
            source,
            text_fields=text_fields or None,
            schema=schema,
            max_length=max_length,
            chunker=chunker,
            progress=bar.update,
        )
    print_json(report.as_dict())
