"""The vectors that were added to a collection in place: their record, the way back, their removal.

The record is in the collection's metadata, beside the metadata that queries read. It is written
before the first vector is added, and stays after a rollback until the vectors are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from bge_client import ConfigurationError

from ..metadata import METADATA, PROBE, CollectionMetadata
from ..schema import COLBERT, SPARSE
from ..store import Store

RECORD = "bge_in_place"  # the key in a collection's metadata


@dataclass(frozen=True)
class AddedVectors:
    """The names of added vectors, and what queries used before.

    `dense` and `colbert` are those of the metadata before. `dense` is None if there was none.
    """

    names: tuple[str, ...] = ()
    dense: str | None = None
    colbert: bool = False

    @classmethod
    def load(cls, store: Store, collection: str) -> AddedVectors | None:
        """Return the record of a collection, or None if nothing was added to it."""
        record = (store.info(collection).config.metadata or {}).get(RECORD)
        if record is None:
            return None
        try:
            return cls(tuple(record["names"]), record["dense"], record["colbert"])
        except (KeyError, TypeError):
            raise ConfigurationError(
                f"the metadata `{RECORD}` of collection `{collection}` is malformed"
            ) from None

    def save(self, store: Store, collection: str) -> None:
        store.update_metadata(collection, {RECORD: {**asdict(self), "names": list(self.names)}})


def stored_metadata(store: Store, collection: str) -> CollectionMetadata | None:
    """Return the metadata that queries read, or None."""
    stored = (store.info(collection).config.metadata or {}).get(METADATA)
    return CollectionMetadata.load(store, collection) if isinstance(stored, Mapping) else None


def vector_names(store: Store, collection: str) -> set[str]:
    """Return the names of a collection's dense and sparse vectors, without an unnamed one."""
    params = store.info(collection).config.params
    dense = {*params.vectors} if isinstance(params.vectors, dict) else set()
    return (dense | {*(params.sparse_vectors or {})}) - {""}


def used_names(metadata: CollectionMetadata | None) -> set[str]:
    """Return the names of the vectors that queries use."""
    if metadata is None:
        return set()
    return {metadata.dense, SPARSE} | ({COLBERT} if metadata.colbert else set())


def roll_back_in_place(store: Store, collection: str) -> str | None:
    """Let queries use the vectors from before. Return the name of the dense one.

    Without metadata before, the metadata goes, and None is returned: `HybridSearch` refuses the
    collection again. The added vectors stay until `drop_vectors`.

    Raises:
        ConfigurationError: the collection does not exist or has no vectors added in place.
    """
    collection = store.resolve(collection)
    added = _record(store, collection)
    metadata = stored_metadata(store, collection)
    if added.dense is None:
        store.update_metadata(collection, {METADATA: None, PROBE: None})
    elif metadata is not None:
        replace(metadata, dense=added.dense, colbert=added.colbert).save(store, collection)
    return added.dense


def drop_vectors(store: Store, collection: str, names: Sequence[str]) -> None:
    """Remove vectors from a collection that was changed in place. Needs Qdrant 1.18.

    After a rollback these are the added ones. Before it, they may be the previous model's, and
    then there is no way back.

    Raises:
        ConfigurationError: queries use one of the vectors, or after a rollback an application may.
    """
    collection = store.resolve(collection)
    added = _record(store, collection)
    metadata, existing = stored_metadata(store, collection), vector_names(store, collection)
    for name in names:
        if name in used_names(metadata):
            raise ConfigurationError(
                f"queries use the vector `{name}` of `{collection}`. Roll back first"
            )
        # Without metadata, an application may be using every vector that was not added.
        if name not in added.names and (metadata is None or name not in existing):
            raise ConfigurationError(
                f"`{name}` is not a vector that was added to `{collection}` in place. "
                f"Those are: {', '.join(added.names)}"
            )
    for name in names:
        store.delete_vector_name(collection, name)
    remaining = tuple(name for name in added.names if name not in names)
    if remaining and set(names) <= {*added.names}:
        replace(added, names=remaining).save(store, collection)
    else:
        store.update_metadata(collection, {RECORD: None})


def _record(store: Store, collection: str) -> AddedVectors:
    added = AddedVectors.load(store, collection)
    if added is None:
        raise ConfigurationError(f"no vectors were added to `{collection}` in place")
    return added
