"""`bge migrate`: copy a collection as BGE vectors, roll back, or drop the old collection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from tqdm import tqdm

from bge_client import Client, ConfigurationError
from bge_client.cli import connected, refuse_unused

from .. import Migration, Schema, Store, add_in_place
from ..errors import MigrationError
from ..migration import cutover
from .options import WORKER_PRICE, schema_options, text_options, with_store
from .output import print_json


@click.command()
@click.argument("source", required=False)
@click.argument("target", required=False)
@click.option("--alias", help="Alias to move to TARGET. [default: SOURCE, if it is an alias]")
@text_options
@click.option(
    "--in-place",
    is_flag=True,
    help="SOURCE holds bge-m3's dense vectors: check a sample of them, and add sparse (with "
    "--colbert also ColBERT) vectors to it.",
)
@click.option("--dense-name", help="With --in-place: the name of the dense vector.")
@click.option(
    "--dry-run", is_flag=True, help="Estimate time and cost from a sample; write nothing."
)
@click.option("--price", default=WORKER_PRICE, show_default=True, help="Dollars per worker second.")
@click.option("--rollback", is_flag=True, help="Point --alias back to the old collection.")
@click.option("--drop-old", is_flag=True, help="Delete the old collection of --alias.")
@connected("EMBEDDINGS", unless=("rollback", "drop_old"))
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
    """
    modes = [mode for mode in MODES if mode is not None and args[mode]]
    if len(modes) > 1:
        raise ConfigurationError(f"pass only one of {', '.join(map(_flag, modes))}")
    mode = modes[0] if modes else None
    refuse_unused(COMMON | MODES[mode], f"with {_flag(mode)}" if mode else "without --in-place")
    options = {name: args[name] for name in MODES[mode] if name in args}
    COMMANDS[mode](client, store, **options)


COMMON = {"path", "qdrant_url", "endpoint", "timeout", "in_flight"}
SCHEMA = {"colbert", "on_disk", "quantization", "schema"}
TEXTS = {"text_fields", "max_length"}
MODES: dict[str | None, set[str]] = {  # the options allowed with each
    None: {"source", "target", "alias"} | TEXTS | SCHEMA,
    "dry_run": {"dry_run", "source", "target", "alias", "price", "colbert", "schema"} | TEXTS,
    "in_place": {"in_place", "source", "dense_name", "colbert", "schema"} | TEXTS,
    "rollback": {"rollback", "alias"},
    "drop_old": {"drop_old", "alias"},
}


def _flag(mode: str) -> str:
    return "--" + mode.replace("_", "-")


def _required_alias(alias: str | None) -> str:
    if alias is None:
        raise ConfigurationError("pass --alias")
    return alias


def roll_back(client: None, store: Store, alias: str | None, rollback: bool) -> None:
    print_json({"alias": alias, "points_to": cutover.roll_back(store, _required_alias(alias))})


def drop(client: None, store: Store, alias: str | None, drop_old: bool) -> None:
    print_json({"alias": alias, "dropped": cutover.drop_old(store, _required_alias(alias))})


def run_in_place(
    client: Client,
    store: Store,
    source: str | None,
    text_fields: tuple[str, ...],
    max_length: int | None,
    dense_name: str | None,
    schema: Schema,
    in_place: bool,
) -> None:
    if source is None:
        raise ConfigurationError("pass SOURCE")
    with tqdm(unit="point", disable=None) as bar:
        report = add_in_place(
            store,
            client,
            source,
            dense=dense_name,
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
    dry_run: bool = False,
    price: float = WORKER_PRICE,
) -> None:
    if source is None or target is None:
        raise ConfigurationError("pass SOURCE and TARGET")
    with tqdm(unit="point", disable=None) as bar:
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
}
