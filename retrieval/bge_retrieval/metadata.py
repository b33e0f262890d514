"""The metadata of a collection of BGE vectors: the model, its dimensions and the text fields.

Every write and every query compares it with the vectors at hand first. Vectors of two models in
one index ruin it without an error, and Jina's have the same 1,024 dimensions as bge-m3's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from qdrant_client import models

from bge_client import Client, ConfigurationError, FingerprintError

from .store import Store

DENSE = "dense"  # the default name of the dense vector
METADATA = "bge"  # the key in a collection's metadata


@dataclass(frozen=True)
class CollectionMetadata:
    """The model and options a collection was created with. `dense` names its dense vector,
    `chunks` says how documents were cut, if they were.

    The target of a migration also records its source (`migrated_from`), whether an alias has
    pointed to it (`in_use`), and the source points that changed at the cutover: their number
    (`late_count`) and the ids of the first (`late`).
    """

    fingerprint: str
    model: str
    dimensions: int
    colbert: bool = False
    dense: str = DENSE
    max_length: int | None = None
    text_fields: tuple[str, ...] = ("text",)
    chunks: dict[str, Any] | None = None
    migrated_from: str | None = None
    in_use: bool = False
    late: tuple[str, ...] = ()
    late_count: int = 0

    @classmethod
    def probe(
        cls,
        client: Client,
        *,
        colbert: bool = False,
        max_length: int | None = None,
        text_fields: tuple[str, ...] = ("text",),
        chunks: dict[str, Any] | None = None,
    ) -> CollectionMetadata:
        """Return the metadata for the model that an endpoint serves."""
        result = client.embed("fingerprint")
        if result.dense is None:
            raise AssertionError("the result has no dense vectors. This is a bug.")
        return cls(
            result.fingerprint,
            result.model,
            int(result.dense.shape[1]),
            colbert=colbert,
            max_length=max_length,
            text_fields=text_fields,
            chunks=chunks,
        )

    @classmethod
    def load(cls, store: Store, collection: str) -> CollectionMetadata:
        """Read the metadata of a collection, and raise as `parse` does."""
        return cls.parse(store.info(collection), collection)

    @classmethod
    def parse(cls, info: models.CollectionInfo, collection: str) -> CollectionMetadata:
        """Return the metadata in the description of a collection.

        Raises:
            FingerprintError: the collection has none.
            ConfigurationError: the metadata is malformed.
        """
        stored = (info.config.metadata or {}).get(METADATA)
        if not isinstance(stored, Mapping):
            raise FingerprintError(
                f"collection `{collection}` has no metadata that names the model of its vectors. "
                f"If they are another model's, run `bge migrate {collection} NEW` to build a "
                f"collection of BGE vectors from its texts, or with --in-place --add-dense bge-m3 "
                f"instead of NEW to add them beside the others. If they are bge-m3's, run "
                f"`bge migrate {collection} --in-place` to check them and add sparse vectors"
            )
        # A later version may have stored more fields.
        names = {field.name for field in fields(cls)} & stored.keys()
        values = {name: stored[name] for name in names}
        try:
            lists = {"text_fields": tuple(values["text_fields"]), "late": tuple(values["late"])}
            return cls(**values | lists)
        except (KeyError, TypeError):
            raise ConfigurationError(
                f"the metadata `{METADATA}` of collection `{collection}` is malformed"
            ) from None

    def check_fingerprint(self, fingerprint: str, collection: str) -> None:
        """Raises FingerprintError if the collection holds vectors of another model."""
        if fingerprint != self.fingerprint:
            raise FingerprintError(
                f"collection `{collection}` holds vectors of {self.model}, fingerprint "
                f"{self.fingerprint}. Given: {fingerprint}. Use the endpoint it was created with, "
                f"or run `bge migrate {collection} NEW` to build a collection for this one"
            )

    def check_options(self, collection: str, **options: object) -> None:
        """Raises ConfigurationError if the collection was created with another value.

        None means that the caller has no preference.
        """
        for name, value in options.items():
            stored = getattr(self, name)
            if value is not None and value != stored:
                raise ConfigurationError(
                    f"collection `{collection}` was created with `{name}` {stored!r}. "
                    f"Given: {value!r}"
                )

    def as_metadata(self) -> dict[str, object]:
        lists = {"text_fields": list(self.text_fields), "late": list(self.late)}
        return {METADATA: {**asdict(self), **lists}}

    def save(self, store: Store, collection: str) -> None:
        """Write this into the metadata of an existing collection."""
        store.update_metadata(collection, self.as_metadata())
