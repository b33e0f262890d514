"""`bge index`, `bge search`, and the options that all commands share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import IO, Any, TypeVar

import click
from pydantic import ValidationError
from qdrant_client import models
from tqdm import tqdm

from bge_client import Client, ConfigurationError
from bge_client.cli import connected

from .. import HybridSearch, Plan, Schema, SearchResult, Store
from .. import index as index_documents

Command = TypeVar("Command", bound=Callable[..., Any])
WORKER_PRICE = 0.00019  # dollars per second of RunPod's 24 GB class, flex
UTF8 = click.File("r", encoding="utf-8-sig")
MAX_TEXT_CHARACTERS = 100  # in a terminal


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
            url = None if path else qdrant_url or os.environ.get("QDRANT_URL") or None
            if not path and not url:
                raise ConfigurationError("pass --path FOLDER or --qdrant-url, or set QDRANT_URL")
            if path and qdrant_url:
                raise ConfigurationError("pass either --path or --qdrant-url")
            if path and not create and not Path(path, "meta.json").exists():
                raise ConfigurationError(f"there are no collections in {path}")
            key = os.environ.get("QDRANT_API_KEY") or None
            with Store.open(url=url, path=path, api_key=key) as store:
                command(store=store, **args)

        return run  # type: ignore[return-value]

    return decorate


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
    @wraps(command)
    def run(colbert: bool, on_disk: bool, quantization: Any, **args: Any) -> None:
        command(schema=Schema(colbert, on_disk, quantization), **args)

    return run  # type: ignore[return-value]


def text_options(command: Command) -> Command:
    command = click.option("--max-length", type=int, help="Truncate texts to this many tokens.")(
        command
    )
    return click.option(
        "--text-field",
        "text_fields",
        multiple=True,
        help="Path of the text in a document: text, page.content, chunks.0.text. Repeatable; "
        "the texts are joined. [default: text]",
    )(command)


# ---------------------------------------------------------------------------------- index


@click.command()
@click.argument("source", type=UTF8, default="-")
@click.option("--collection", required=True, help="Created if it does not exist.")
@text_options
@connected("EMBEDDINGS")
@with_store(create=True)
@schema_options
def index(
    client: Client,
    store: Store,
    source: IO[str],
    collection: str,
    text_fields: tuple[str, ...],
    max_length: int | None,
    schema: Schema,
) -> None:
    """Embed the JSON objects in SOURCE, one per line, and write them as points.

    Each object becomes the payload of a point. The point's id is derived from `_id` or `id`. After
    a failure, run it again: it skips the documents that are already indexed.

    \b
      bge index corpus.jsonl --collection courses --path qdrant-data
    """
    with tqdm(unit="text", disable=None) as bar:
        report = index_documents(
            store,
            client,
            collection,
            source,
            text_fields=text_fields or None,
            schema=schema,
            max_length=max_length,
            progress=bar.update,
        )
    print_json(report.as_dict())


def print_json(report: dict[str, Any]) -> None:
    """Print an object as one line of JSON."""
    click.echo(json.dumps(report, ensure_ascii=False, default=str))


# --------------------------------------------------------------------------------- search


def plan_options(command: Command) -> Command:
    """Add the options of a search, as a `plan`."""

    @click.option(
        "--mode",
        type=click.Choice(["hybrid", "dense", "sparse"]),
        default="hybrid",
        show_default=True,
    )
    @click.option("--colbert", is_flag=True, help="Rescore by the collection's ColBERT vectors.")
    @click.option(
        "--rerank",
        type=click.IntRange(0),
        default=0,
        help="Rerank this many of the best hits with the cross-encoder.",
    )
    @click.option("--fusion", type=click.Choice(["rrf", "dbsf"]), default="rrf", show_default=True)
    @click.option("--rrf-k", default=61, show_default=True)
    @click.option(
        "--weights",
        type=(float, float),
        default=(1.0, 1.0),
        show_default=True,
        help="Weights of dense and sparse in RRF.",
    )
    @click.option(
        "--candidates",
        default=100,
        show_default=True,
        help="Candidates from dense and from sparse.",
    )
    @wraps(command)
    def run(mode: str, **args: Any) -> None:
        names = ("colbert", "rerank", "fusion", "rrf_k", "weights", "candidates")
        options = {name: args.pop(name) for name in names}
        plan = Plan(dense=mode != "sparse", sparse=mode != "dense", **options)
        command(plan=plan, **args)

    return run  # type: ignore[return-value]


@click.command()
@click.argument("query")
@click.option("--collection", required=True, help="A collection or an alias.")
@click.option("--limit", default=10, show_default=True, type=click.IntRange(1))
@click.option(
    "--filter",
    "filter_json",
    help='A Qdrant filter as JSON: {"must": [{"key": "lang", "match": {"value": "ru"}}]}',
)
@click.option("--explain", is_flag=True, help="Show the rank of each hit in every stage.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of columns.")
@connected("EMBEDDINGS", reranking=True)
@with_store()
@plan_options
def search(
    client: Client,
    reranker: Client,
    store: Store,
    query: str,
    collection: str,
    limit: int,
    filter_json: str | None,
    explain: bool,
    as_json: bool,
    plan: Plan,
) -> None:
    """Search a collection for QUERY.

    \b
      bge search "как найти минимум функции" --collection courses --path qdrant-data
      bge search "B-tree index" --collection courses --rerank 50 --explain
    """
    engine = HybridSearch(store, client, collection, plan, reranker=reranker)
    result = engine.search(query, limit, filter=_parse_filter(filter_json), explain=explain)
    if as_json:
        for hit in result:
            stages = {name: [stage.rank, stage.score] for name, stage in hit.stages.items()}
            print_json({"id": hit.id, "score": hit.score, "stages": stages, "payload": hit.payload})
        return
    print_hits(result)


def print_hits(result: SearchResult) -> None:
    """Print hits in columns, and the time of each stage on stderr."""
    stages = list({name: None for hit in result for name in hit.stages})
    header = "".join(f"{name:>16}" for name in stages)
    click.echo(f"{'':4}{'score':>8}{header}  document")
    for rank, hit in enumerate(result, 1):
        hit_stages = (hit.stages.get(name) for name in stages)
        cells = (f"{stage.rank}. {stage.score:.4f}" if stage else "-" for stage in hit_stages)
        row = "".join(f"{cell:>16}" for cell in cells)
        text = " ".join((hit.text or "").split())[:MAX_TEXT_CHARACTERS]
        click.echo(f"{rank:3} {hit.score:8.4f}{row}  {hit.document_id}  {text}")
    times = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in result.seconds.items())
    click.echo(f"bge: {times}", err=True)


def _parse_filter(filter_json: str | None) -> Any:
    if filter_json is None:
        return None
    try:
        return models.Filter.model_validate_json(filter_json)
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(map(str, first["loc"])) or "the filter"
        raise ConfigurationError(
            f"`--filter` is not a valid Qdrant filter: {location}: {first['msg']}"
        ) from None
