"""After the cutover of a migration: roll back, or drop the source."""

from __future__ import annotations

from dataclasses import replace

from bge_client import ConfigurationError

from ..errors import MigrationError
from ..metadata import METADATA, CollectionMetadata
from ..similarity import format_ids
from ..store import PointId, Store
from ..sync import is_current


def roll_back(store: Store, alias: str) -> str:
    """Point the alias back to the source of the migration. Return the name of the source.

    The source lacks what was written to the target since the cutover.

    Raises:
        ConfigurationError: the alias or the source does not exist.
    """
    collection, metadata, source = _migrated_collection(store, alias)
    if not store.exists(source):
        raise ConfigurationError(f"`{source}`, the source of `{collection}`, does not exist")
    replace(metadata, in_use=True).save(store, collection)
    store.point_alias(alias, source)
    return source


def drop_old(store: Store, alias: str) -> str:
    """Delete the source of the migration. Return its name.

    Raises:
        ConfigurationError: the alias or the source does not exist, or an alias uses the source.
        MigrationError: the cutover is incomplete, or the source has late changes.
    """
    collection, metadata, source = _migrated_collection(store, alias)
    aliases = [name for name, target in store.aliases().items() if target == source]
    if aliases:
        raise ConfigurationError(f"`{source}` is still in use by alias `{'`, `'.join(aliases)}`")
    if not store.exists(source):
        raise ConfigurationError(f"`{source}`, the source of `{collection}`, does not exist")
    if not metadata.in_use:
        raise MigrationError(
            f"the migration to `{collection}` was interrupted at the cutover: run it again first"
        )
    late = [id for id in metadata.late if _differs(store, source, collection, id)]
    if late:
        raise MigrationError(
            f"{len(late)} points of `{source}` changed at the cutover{format_ids(late)}. "
            f"Copy them to `{collection}` or delete them from `{source}` first"
        )
    store.delete_collection(source)
    return source


def _differs(store: Store, source: str, target: str, late_id: str) -> bool:
    ids: list[PointId] = [int(late_id) if late_id.isdecimal() else late_id]
    source_payloads, target_payloads = store.payloads(source, ids), store.payloads(target, ids)
    return any(
        not is_current(target_payloads.get(id), payload) for id, payload in source_payloads.items()
    )


def _migrated_collection(store: Store, alias: str) -> tuple[str, CollectionMetadata, str]:
    """Return the collection behind an alias, its metadata and the migration's source."""
    collection = store.aliases().get(alias)
    if collection is None:
        raise ConfigurationError(f"there is no alias `{alias}`")
    if METADATA in (store.info(collection).config.metadata or {}):
        metadata = CollectionMetadata.load(store, collection)
        if metadata.migrated_from is not None:
            return collection, metadata, metadata.migrated_from
    raise ConfigurationError(
        f"alias `{alias}` points to `{collection}`, which is not the target of a migration"
    )
