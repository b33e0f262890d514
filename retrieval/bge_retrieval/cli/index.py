"""`bge index`: documents through an endpoint, or vectors that `bge bulk` has written."""

from __future__ import annotations

from typing import IO

import click

from bge_client import Client, ConfigurationError
from bge_client.cli import connected, count_lines, progress_bar, refuse, refuse_unused

from .. import Chunker, Schema, Store
from .. import index as index_documents
from .options import chunk_options, collection_option, schema_options, text_options, with_store
from .output import print_json

STORE_OPTIONS = {"collection", "path", "qdrant_url", "colbert", "on_disk", "quantization"}
STORE_OPTIONS |= {"colbert_quantization"}
PARQUET_OPTIONS = {"from_parquet", "parallel", "alias"}


@click.command()
@click.argument("source", type=click.File("r", encoding="utf-8-sig"), default="-")
@collection_option("Created if it does not exist.")
@click.option(
    "--from-parquet", metavar="FOLDER", help="Load the output of `bge bulk`; needs no endpoint."
)
@click.option(
    "--parallel",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="With --from-parquet: threads that write.",
)
@click.option("--alias", help="With --from-parquet: alias to point to the collection at the end.")
@text_options
@connected("EMBEDDINGS", unless=("from_parquet",))
@with_store(create=True)
@schema_options
@chunk_options
def index(
    client: Client,
    store: Store,
    source: IO[str],
    collection: str,
    from_parquet: str | None,
    parallel: int,
    alias: str | None,
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
      bge index --from-parquet s3://bucket/crawl --collection crawl-2 --alias crawl
    """
    if from_parquet is not None:
        refuse_unused(STORE_OPTIONS | PARQUET_OPTIONS, "with --from-parquet")
        _load(store, from_parquet, collection, schema, parallel, alias)
        return
    refuse(PARQUET_OPTIONS, "without --from-parquet")
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


def _load(
    store: Store, folder: str, collection: str, schema: Schema, parallel: int, alias: str | None
) -> None:
    try:
        from ..bulk.finished_job import FinishedJob
        from ..bulk.load import load
    except ImportError as error:
        raise ConfigurationError(
            f"--from-parquet needs {error.name}: pip install 'bge-retrieval[parquet]'"
        ) from None
    job = FinishedJob(folder)
    with progress_bar("rows", job.rows) as bar:
        report = load(
            store,
            job,
            collection,
            schema=schema,
            parallel=parallel,
            alias=alias,
            progress=bar.update,
        )
    print_json(report.as_dict())
