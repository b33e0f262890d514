"""The metadata of a collection of BGE vectors: the model, its dimensions and the text fields.

Every write and every query compares it with the vectors at hand first. Vectors of two models in
one index ruin it without an error, and Jina's have the same 1,024 dimensions as bge-m3's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..client import Client
from ..errors import ConfigurationError, FingerprintError
from .store import Store

DENSE = "dense"  # the default name of the dense vector
METADATA = "bge"  # the key in a collection's metadata


@dataclass(frozen=True)
class CollectionMetadata:
    """What a collection's vectors are of. `dense` is the name of its dense vector.

    Of a migration's target: what it was made from, whether it has been in use, and which points
    of the source changed at the moment of the swap.
    """

    fingerprint: str
    model: str
    dimensions: int
    colbert: bool = False
    dense: str = DENSE
    max_length: int | None = None
    text_fields: tuple[str, ...] = ("text",)
    migrated_from: str | None = None
    in_use: bool = False
    late: tuple[str, ...] = ()

    @classmethod
    def probe(cls, client: Client, **options: Any) -> CollectionMetadata:
        """Of the model that an endpoint serves."""
        result = client.embed("fingerprint")
        if result.dense is None:
            raise AssertionError("dense vectors were asked for. This is a bug.")
        return cls(result.fingerprint, result.model, int(result.dense.shape[1]), **options)

    @classmethod
    def load(cls, store: Store, collection: str) -> CollectionMetadata:
        """What the collection says of itself.

        Raises:
            FingerprintError: it does not say.
        """
        stored = (store.info(collection).config.metadata or {}).get(METADATA)
        if not isinstance(stored, Mapping):
            raise FingerprintError(
                f"collection `{collection}` does not say which model its vectors are of. If they "
                f"are another model's, `bge migrate {collection} NEW` makes a collection of BGE "
                f"vectors from its texts. If they are bge-m3's, `bge migrate {collection} "
                "--in-place` checks them and adds the sparse ones"
            )
        names = {field.name for field in fields(cls)} & stored.keys()  # not a later version's
        values = {name: stored[name] for name in names}
        try:
            lists = {"text_fields": tuple(values["text_fields"]), "late": tuple(values["late"])}
            return cls(**values | lists)
        except (KeyError, TypeError):
            raise ConfigurationError(
                f"the metadata `{METADATA}` of collection `{collection}` is not what we write"
            ) from None

    def check_fingerprint(self, fingerprint: str, collection: str) -> None:
        """Raises FingerprintError: those vectors do not belong there."""
        if fingerprint != self.fingerprint:
            raise FingerprintError(
                f"collection `{collection}` holds vectors of {self.model}, {self.fingerprint}. "
                f"Given: those of {fingerprint}. Use the endpoint it was made with, or "
                f"`bge migrate {collection} NEW` to make a collection for this one"
            )

    def check_options(self, collection: str, **options: Any) -> None:
        """Raises ConfigurationError: the collection was made with another value of one of these.

        What is None was not asked for.
        """
        for name, value in options.items():
            stored = getattr(self, name)
            if value is not None and value != stored:
                raise ConfigurationError(
                    f"collection `{collection}` was made with `{name}` {stored!r}. Given: {value!r}"
                )

    def as_metadata(self) -> dict[str, Any]:
        lists = {"text_fields": list(self.text_fields), "late": list(self.late)}
        return {METADATA: {**asdict(self), **lists}}

    def save(self, store: Store, collection: str) -> None:
        """Into the metadata of a collection that is there."""
        store.update_metadata(collection, self.as_metadata())
