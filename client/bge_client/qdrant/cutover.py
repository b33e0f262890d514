"""After a migration's swap: back to the old collection, or away with it."""

from __future__ import annotations

from dataclasses import replace

from ..errors import ConfigurationError, MigrationError
from .metadata import METADATA, CollectionMetadata
from .similarity import format_ids
from .store import PointId, Store
from .sync import is_current


def roll_back(store: Store, alias: str) -> str:
    """Point the alias back to what its collection was made from; returns that.

    What was written to the newer collection since is not in the older one.

    Raises:
        ConfigurationError: there is no such alias, or nothing to go back to.
    """
    collection, metadata, source = _migrated_collection(store, alias)
    if not store.exists(source):
        raise ConfigurationError(f"`{source}`, which `{collection}` was made from, is gone")
    replace(metadata, in_use=True).save(store, collection)
    store.point_alias(alias, source)
    return source


def drop_old(store: Store, alias: str) -> str:
    """Delete what the alias' collection was made from; returns its name.

    Raises:
        ConfigurationError: there is no such alias, nothing to delete, or it is still in use.
        MigrationError: it holds points that changed at the moment of the swap.
    """
    collection, metadata, source = _migrated_collection(store, alias)
    aliases = [name for name, target in store.aliases().items() if target == source]
    if aliases:
        raise ConfigurationError(f"`{source}` is still in use by alias `{'`, `'.join(aliases)}`")
    if not store.exists(source):
        raise ConfigurationError(f"`{source}`, which `{collection}` was made from, is gone already")
    if not metadata.in_use:
        raise MigrationError(
            f"the migration to `{collection}` was broken off at the swap: run it again first"
        )
    late = [id for id in metadata.late if _differs(store, source, collection, id)]
    if late:
        raise MigrationError(
            f"{len(late)} points of `{source}` changed at the cutover{format_ids(late)}. "
            f"Bring them into `{collection}`, or delete them from `{source}`, first"
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
    """The collection an alias points to, its binding, and what it was made from."""
    collection = store.aliases().get(alias)
    if collection is None:
        raise ConfigurationError(f"there is no alias `{alias}`")
    if METADATA in (store.info(collection).config.metadata or {}):
        metadata = CollectionMetadata.load(store, collection)
        if metadata.migrated_from is not None:
            return collection, metadata, metadata.migrated_from
    raise ConfigurationError(
        f"alias `{alias}` points to `{collection}`, which was not made by a migration"
    )
