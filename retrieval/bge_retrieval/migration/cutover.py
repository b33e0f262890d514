"""Move an alias to the target of a migration, and back; drop the source.

Everything that moves an alias is here.
"""

from __future__ import annotations

from dataclasses import replace

from bge_client import Client, ConfigurationError

from ..errors import MigrationError
from ..metadata import METADATA, CollectionMetadata
from ..similarity import format_ids
from ..store import PointId, Store
from ..sync import MAX_REPORTED_IDS, sync
from .collection_pair import CollectionPair
from .reports import MigrationReport


def cut_over(
    pair: CollectionPair,
    client: Client,
    alias: str,
    metadata: CollectionMetadata,
    report: MigrationReport,
) -> None:
    """Point `alias` to the target, then handle the changes that the last pass missed.

    A point that the target lacks must be new in the source, so it is copied. A point that differs
    may have changed on either side, so it is reported.
    """
    pair.store.point_alias(alias, pair.target)
    differing = list(pair.differing())
    documents = pair.source_documents(pair.missing_in_target(differing))
    sync(pair.store, client, pair.target, metadata, documents, report)
    _mark_in_use(pair, metadata, report, list(pair.still_differing(differing)))


def finish_cutover(
    pair: CollectionPair, metadata: CollectionMetadata, report: MigrationReport
) -> None:
    """Finish a cutover at which an earlier run was killed. Copies nothing: the target is in use."""
    _mark_in_use(pair, metadata, report, list(pair.differing()))


def _mark_in_use(
    pair: CollectionPair,
    metadata: CollectionMetadata,
    report: MigrationReport,
    late: list[PointId],
) -> None:
    """Report the points that differ, and record them in the target's metadata."""
    report.late, report.only_in_target = late, list(pair.only_in_target())
    ids = tuple(map(str, late[:MAX_REPORTED_IDS]))
    recorded = replace(metadata, in_use=True, late=ids, late_count=len(late))
    recorded.save(pair.store, pair.target)


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
    pair = CollectionPair(store, source, collection, metadata.text_fields)
    late = _late(pair, metadata)
    if late:
        raise MigrationError(
            f"{metadata.late_count} points of `{source}` changed at the cutover, and {len(late)} "
            f"differ from `{collection}`{format_ids(late)}. Copy them to `{collection}` or delete "
            f"them from `{source}` first"
        )
    store.delete_collection(source)
    return source


def _late(pair: CollectionPair, metadata: CollectionMetadata) -> list[PointId]:
    """Return the late points that differ. If not all are recorded, compare all points."""
    if metadata.late_count != len(metadata.late):
        return list(pair.differing())
    return list(pair.still_differing(int(id) if id.isdecimal() else id for id in metadata.late))


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
