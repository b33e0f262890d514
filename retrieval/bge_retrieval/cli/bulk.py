"""`bge bulk`."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import closing
from functools import wraps
from typing import Any, TypeVar

import click

from bge_client import BGEError, Client, ConfigurationError
from bge_client.cli import connected, refuse
from bge_client.codec import Dtype

from ..bulk import endpoint_pipeline
from ..bulk.engine import EngineOptions
from ..bulk.folder import OutputFolder
from ..bulk.job import Job, check_started, open_job
from ..bulk.manifest import Entry, Options
from ..bulk.sources import QdrantSource, Source, file_system, open_files
from .bulk_progress import Progress
from .options import collection_option, price_option, store_address, text_options
from .output import print_json

PARTITION_ROWS, COLBERT_PARTITION_ROWS = 8192, 256
MIN_LENGTH, MAX_LENGTH = 3, 8192  # tokens, the model's
RAY_OPTIONS = {"address", "actors", "threads", "device"}
ENDPOINT_OPTIONS = {"endpoint", "timeout", "in_flight"}
INSTALL = "pip install 'bge-retrieval[bulk]'"
Command = TypeVar("Command", bound=Callable[..., Any])


def source_options(command: Command) -> Command:
    """Add SOURCE and the options of a collection, as a `source`."""

    @click.argument("files", metavar="[SOURCE]", required=False)
    @collection_option("Read the points of this Qdrant collection.", required=False)
    @click.option("--path", help="Folder of Qdrant's local mode; not with --model.")
    @click.option("--qdrant-url", help="Address of a Qdrant server; overrides QDRANT_URL.")
    @wraps(command)
    def run(
        files: str | None,
        collection: str | None,
        path: str | None,
        qdrant_url: str | None,
        **args: Any,
    ) -> None:
        if (files is None) == (collection is None):
            raise click.UsageError("pass either SOURCE or --collection")
        if files is not None:
            refuse({"path", "qdrant_url"}, "with SOURCE")
            check_output(args["to"], files)
            command(source=open_files(files), **args)
            return
        if path and args["model"]:
            raise ConfigurationError(
                "--path means nothing with --model: one process can open the folder. Run a Qdrant "
                "server"
            )
        address = store_address(path and os.path.abspath(path), qdrant_url)
        command(source=QdrantSource(str(collection), **address), **args)

    return run  # type: ignore[return-value]


def check_output(to: str, files: str) -> None:
    """Raises ConfigurationError: a second run would read the output of the first."""
    paths = [f"{file_system(path)[1]}/" for path in (to, files)]
    if paths[0].startswith(paths[1]):
        raise ConfigurationError("--to must not lie in SOURCE")


def vector_options(command: Command) -> Command:
    """Add what decides the vectors and partitions, as `options`."""

    @click.option(
        "--dtype",
        type=click.Choice(["float16", "float32"]),
        default="float16",
        show_default=True,
        help="Type of the dense vectors.",
    )
    @click.option("--sparse/--no-sparse", default=True, show_default=True)
    @click.option("--colbert", is_flag=True, help="Also ColBERT vectors: 2 KB for each token.")
    @click.option(
        "--colbert-pool",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Pool so many ColBERT vectors of a text to one.",
    )
    @text_options
    @click.option(
        "--partition-rows",
        type=click.IntRange(1),
        help=f"Rows of a file. [{PARTITION_ROWS}; with --colbert {COLBERT_PARTITION_ROWS}]",
    )
    @wraps(command)
    def run(
        dtype: Dtype,
        sparse: bool,
        colbert: bool,
        colbert_pool: int,
        text_fields: tuple[str, ...],
        max_length: int | None,
        partition_rows: int | None,
        **args: Any,
    ) -> None:
        if colbert_pool > 1 and not colbert:
            raise ConfigurationError("--colbert-pool needs --colbert")
        if max_length is not None and not MIN_LENGTH <= max_length <= MAX_LENGTH:
            raise ConfigurationError(
                f"--max-length must be from {MIN_LENGTH} to {MAX_LENGTH}. Given: {max_length}"
            )
        rows = partition_rows or (COLBERT_PARTITION_ROWS if colbert else PARTITION_ROWS)
        fields = text_fields or ("text",)
        options = Options(dtype, sparse, colbert, colbert_pool, max_length, fields, rows)
        command(options=options, **args)

    return run  # type: ignore[return-value]


@click.command()
@click.option("--to", required=True, help="Output folder, a path or an object-store URI.")
@click.option("--model", help="Runtime folder of the model, on every node: embed on Ray.")
@click.option("--address", help="Address of a Ray cluster. [default: Ray on this machine]")
@click.option("--actors", type=click.IntRange(1), help="Engines. [default: one for each GPU]")
@click.option("--threads", type=click.IntRange(1), help="Threads of an engine on a CPU.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@price_option("--dollars-per-hour", 0.0, "hour of an engine")
@connected("EMBEDDINGS", unless=("model",))
@source_options
@vector_options
def bulk(
    client: Client | None,
    source: Source,
    options: Options,
    to: str,
    model: str | None,
    address: str | None,
    actors: int | None,
    threads: int | None,
    device: str,
    dollars_per_hour: float,
) -> None:
    """Embed a whole corpus into a folder of Parquet files, on Ray or through an endpoint.

    SOURCE is a Parquet or JSONL file, a folder, a glob or an object-store URI of such files. Each
    row is a document, as for `bge index`. One that cannot be embedded goes to the folder's
    dead-letters with the reason. Run it again to resume: finished partitions are kept.

    With --model, engines run on Ray: on this machine, or on the cluster at --address. With
    --endpoint, two partitions at a time are sent to it, each with --in-flight requests.

    \b
      bge bulk corpus.jsonl --to vectors --model models/bge-packed/bge-m3
      bge bulk 's3://bucket/corpus/*.parquet' --to s3://bucket/vectors \\
        --model /models/bge-m3 --address auto --dollars-per-hour 2.5
      bge bulk --collection courses --to vectors --endpoint http://127.0.0.1:8000
    """
    refuse(ENDPOINT_OPTIONS if model else RAY_OPTIONS, f"with{'' if model else 'out'} --model")
    folder = OutputFolder(to)
    check_started(folder, source, options)
    if client is not None:
        job = open_job(folder, source, options, endpoint_pipeline.identify(client))
        report(job, endpoint_pipeline.run(job, client), 1, dollars_per_hour)
        return
    try:
        from ..bulk import ray_pipeline  # Ray takes seconds to import
    except ImportError as error:
        raise ConfigurationError(f"--model needs {error.name}: {INSTALL}") from None
    ray_pipeline.connect(address)
    pool = ray_pipeline.choose_pool(actors, threads, device)
    engine = EngineOptions(os.path.abspath(model or ""))
    job = open_job(folder, source, options, ray_pipeline.identify(engine, pool))
    report(job, ray_pipeline.run(job, engine, pool), pool.actors, dollars_per_hour)


def report(
    job: Job, entries: Generator[Entry, None, None], actors: int, dollars_per_hour: float
) -> None:
    """Run a job to its end, and print its report."""
    with Progress(job, actors, dollars_per_hour) as progress:
        try:
            with closing(entries):
                for entry in entries:
                    progress.add(entry)
        except KeyboardInterrupt:
            click.echo("\nbge: run the same command again to resume", err=True)
            raise
    job.folder.remove_temporary_files()  # of processes that died, and whose work was repeated
    if progress.dead_letters:
        failed = f"{progress.total.failed:,} rows could not be embedded"
        click.echo(f"bge: {failed}: see {progress.dead_letters}", err=True)
    print_json(progress.report())
    if not progress.total.written:
        raise BGEError("no row could be embedded")
