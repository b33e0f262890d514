"""`bge migrate`: a copy of a collection as BGE vectors, or vectors added in place; and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import click

from bge_client import Client, ConfigurationError
from bge_client.cli import connected, progress_bar, refuse_unused

from .. import Migration, Schema, Store, add_in_place, drop_vectors, roll_back_in_place
from ..errors import MigrationError
from ..migration import cutover
from .options import WORKER_PRICE, price_option, schema_options, text_options, with_store
from .output import print_json


@click.command()
@click.argument("source", required=False)
@click.argument("target", required=False)
@click.option("--alias", help="Alias to move to TARGET. [default: SOURCE, if it is an alias]")
@text_options
@click.option(
    "--in-place",
    is_flag=True,
    help="Add sparse (with --colbert also ColBERT) vectors to SOURCE. Without --add-dense, SOURCE "
    "holds bge-m3's dense vectors, of which a sample is checked.",
)
@click.option("--dense-name", help="With --in-place: the name of bge-m3's dense vectors.")
@click.option(
    "--add-dense", metavar="NAME", help="With --in-place: also add dense vectors, by this name."
)
@click.option("--snapshot", is_flag=True, help="First let the server write a snapshot of SOURCE.")
@click.option(
    "--dry-run", is_flag=True, help="Estimate time and cost from a sample; write nothing."
)
@price_option("--price", WORKER_PRICE, "second of a busy worker")
@click.option(
    "--rollback",
    is_flag=True,
    help="Point --alias back to the old collection. For SOURCE, let queries use its old vectors.",
)
@click.option("--drop-old", is_flag=True, help="Delete the old collection of --alias.")
@click.option(
    "--drop-vector",
    metavar="NAME",
    multiple=True,
    help="Remove from SOURCE, migrated in place, a vector that queries do not use. Repeatable.",
)
@connected("EMBEDDINGS", unless=("rollback", "drop_old", "drop_vector"))
@with_store()
@schema_options
def migrate(client: Client, store: Store, **args: Any) -> None:
    """Copy the collection SOURCE, with any vectors, to a collection TARGET of BGE vectors.

    The source is only read. The copy is verified, then the alias is moved atomically. After a kill
    or an error, run the same command again. Points without a text are copied without vectors and
    reported. Changes at the cutover that could not be copied are reported with exit code 6.

    \b
      bge migrate courses courses_bge --dry-run          # courses: an alias or a collection
      bge migrate courses courses_bge
      bge migrate --rollback --alias courses
      bge migrate --drop-old --alias courses
      bge migrate courses --in-place                     # it holds bge-m3's dense vectors
      bge migrate courses --in-place --add-dense bge-m3  # it holds another model's
      bge migrate courses --rollback
      bge migrate courses --drop-vector bge-m3 --drop-vector sparse
    """
    modes = [mode for mode in MODES if mode is not None and args[mode]]
    if len(modes) > 1:
        raise ConfigurationError(f"pass only one of {', '.join(map(_flag, modes))}")
    mode = modes[0] if modes else None
    refuse_unused(COMMON | MODES[mode], f"with {_flag(mode)}" if mode else "without --in-place")
    options = {name: args[name] for name in MODES[mode] if name in args}
    COMMANDS[mode](client, store, **options)


COMMON = {"path", "qdrant_url", "endpoint", "timeout", "in_flight"}
SCHEMA = {"colbert", "on_disk", "quantization", "colbert_quantization", "schema"}
TEXTS = {"text_fields", "max_length"}
MODES: dict[str | None, set[str]] = {  # the options allowed with each
    None: {"source", "target", "alias", "snapshot"} | TEXTS | SCHEMA,
    "dry_run": {"dry_run", "source", "target", "alias", "price", "colbert", "schema"} | TEXTS,
    "in_place": {"in_place", "source", "dense_name", "add_dense", "snapshot", "colbert", "schema"}
    | TEXTS,
    "rollback": {"rollback", "alias", "source"},
    "drop_old": {"drop_old", "alias"},
    "drop_vector": {"drop_vector", "source"},
}


def _flag(mode: str) -> str:
    return "--" + mode.replace("_", "-")


def _required(value: str | None, name: str) -> str:
    if value is None:
        raise ConfigurationError(f"pass {name}")
    return value


def roll_back(
    client: None, store: Store, alias: str | None, source: str | None, rollback: bool
) -> None:
    if source is None:
        name = _required(alias, "--alias, or SOURCE if it was migrated in place")
        print_json({"alias": name, "points_to": cutover.roll_back(store, name)})
    elif alias is None:
        print_json({"source": source, "dense": roll_back_in_place(store, source)})
    else:
        raise ConfigurationError("pass either --alias or SOURCE")


def drop(client: None, store: Store, alias: str | None, drop_old: bool) -> None:
    name = _required(alias, "--alias")
    print_json({"alias": name, "dropped": cutover.drop_old(store, name)})


def drop_vector(
    client: None, store: Store, source: str | None, drop_vector: tuple[str, ...]
) -> None:
    name = _required(source, "SOURCE")
    drop_vectors(store, name, drop_vector)
    print_json({"source": name, "dropped": drop_vector})


def _take_snapshot(store: Store, collection: str) -> None:
    """Let the server write a snapshot. Print its name, and how to restore it."""
    name = store.create_snapshot(collection)
    snapshots = f"collections/{quote(collection, safe='')}/snapshots/{quote(name)}"
    upload = f"collections/{quote(collection, safe='')}_restored/snapshots/upload"
    click.echo(
        f"snapshot of {collection}: {name}. Download it, and if needed restore it under a new name "
        '(with a key, add -H "api-key: $QDRANT_API_KEY"):\n'
        f'  curl -f -o snapshot "$QDRANT_URL/{snapshots}"\n'
        f'  curl -f -F snapshot=@snapshot "$QDRANT_URL/{upload}?priority=snapshot"',
        err=True,
    )


def run_in_place(
    client: Client,
    store: Store,
    source: str | None,
    text_fields: tuple[str, ...],
    max_length: int | None,
    dense_name: str | None,
    add_dense: str | None,
    snapshot: bool,
    schema: Schema,
    in_place: bool,
) -> None:
    source = store.resolve(_required(source, "SOURCE"))
    if snapshot:
        _take_snapshot(store, source)
    with progress_bar("points", store.count(source)) as bar:
        report = add_in_place(
            store,
            client,
            source,
            dense=dense_name,
            add_dense=add_dense,
            text_fields=text_fields or None,
            colbert=schema.colbert,
            max_length=max_length,
            progress=bar.update,
        )
    print_json(report.as_dict())


def run_migration(
    client: Client,
    store: Store,
    source: str | None,
    target: str | None,
    alias: str | None,
    text_fields: tuple[str, ...],
    max_length: int | None,
    schema: Schema,
    snapshot: bool = False,
    dry_run: bool = False,
    price: float = WORKER_PRICE,
) -> None:
    if source is None or target is None:
        raise ConfigurationError("pass SOURCE and TARGET")
    with progress_bar("points") as bar:
        migration = Migration(
            store,
            client,
            source,
            target,
            alias=alias,
            text_fields=text_fields or ("text",),
            schema=schema,
            max_length=max_length,
            progress=bar.update,
        )
        if dry_run:
            print_json(migration.estimate(price).as_dict())
            return
        if snapshot:
            _take_snapshot(store, migration.source)
        bar.reset(store.count(migration.source))
        report = migration.run()
    print_json(report.as_dict())
    if report.late:
        raise MigrationError(
            f"{len(report.late)} points of `{report.source}` changed at the cutover, and "
            f"`{report.target}` has their earlier content"
        )


COMMANDS: dict[str | None, Callable[..., None]] = {
    None: run_migration,
    "dry_run": run_migration,
    "in_place": run_in_place,
    "rollback": roll_back,
    "drop_old": drop,
    "drop_vector": drop_vector,
}
