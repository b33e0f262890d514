"""A probe shows whether the vectors of another host are those of the endpoint.

It holds a few texts with the vectors that the endpoint gave. Vectors of the same model differ by
rounding: in float16 by a cosine of 0.9999 or more. Another model, another pooling, another length
limit or 8-bit weights differ by more.
"""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .. import strict_json
from ..client import Client
from ..errors import ConfigurationError, ProtocolError
from ..results import EmbedResult, Floats, SparseVector

log = logging.getLogger("bge_client")

MIN_COSINE = 0.999  # of a vector with its own
MIN_MARGIN = 0.005  # between that and the cosine with the vector of any other text
MAX_WEIGHT_DIFFERENCE = 0.02  # of a sparse weight
WEIGHTS = 8  # sparse weights kept of each text, the largest
TTL_SECONDS = 86_400.0
# The last third of the long text, which a limit of 512 tokens cuts off, has a subject of its own.
TEXTS = {
    "ru": "Градиентный спуск ищет минимум функции, двигаясь против её градиента.",
    "en": "A transaction is all or nothing: either every change is kept, or none.",
    "short": "море",
    "long": "Предел функции в точке не зависит от её значения в этой точке. " * 16
    + "The ship left the harbour at dawn and followed the coast to the north. " * 16
    + "Закваска для хлеба живёт в тепле, и утром её кормят мукой и водой. " * 16,
    "odd": "№7: ½ × ＡＢＣ-１２３ ≈ naïve cafe\u0301 😀 数学\t<b>if (a&&b)</b>\nשלום…",
}


class ProbeText(NamedTuple):
    """A text with its dense vector, float32 [D], and the largest of its sparse weights."""

    name: str
    text: str
    dense: Floats
    sparse: SparseVector


class ProbeRow(NamedTuple):
    """A text's cosine with its own vector and with the closest other one.

    `weight_difference` is the largest of the sparse weights', or None without sparse vectors.
    """

    name: str
    cosine: float
    other_cosine: float
    weight_difference: float | None

    @property
    def reason(self) -> str | None:
        """Return why the text does not match, or None."""
        name = f"text `{self.name}`"
        if not self.cosine >= MIN_COSINE:
            return f"{name} has cosine {self.cosine:.5f}, at least {MIN_COSINE} is required"
        if not self.cosine - self.other_cosine >= MIN_MARGIN:
            return (
                f"{name} has cosine {self.cosine:.5f}, and {self.other_cosine:.5f} with another "
                f"text: a margin of at least {MIN_MARGIN} is required"
            )
        if self.weight_difference is not None and self.weight_difference > MAX_WEIGHT_DIFFERENCE:
            return (
                f"{name} has sparse weights that differ by {self.weight_difference:.4f}, at most "
                f"{MAX_WEIGHT_DIFFERENCE} is allowed"
            )
        return None


@dataclass(frozen=True, eq=False)
class Probe:
    """Texts and their vectors by the model with this fingerprint."""

    fingerprint: str
    model: str
    items: tuple[ProbeText, ...] = field(repr=False)

    @classmethod
    def record(cls, client: Client) -> Probe:
        """Return the probe of an endpoint. Sends it one request of about 900 tokens."""
        return cls.of(client.embed(list(TEXTS.values()), sparse=True))

    @classmethod
    def of(cls, result: EmbedResult) -> Probe:
        """Return the probe of the dense and sparse vectors of `TEXTS`."""
        if result.dense is None or result.sparse is None:
            raise AssertionError("the result lacks vectors. This is a bug.")
        dense = result.dense.astype(np.float16).astype(np.float32)  # as `as_dict` stores them
        sparse = [_largest(vector) for vector in result.sparse]
        rows = zip(TEXTS, TEXTS.values(), dense, sparse, strict=True)
        return cls(result.fingerprint, result.model, tuple(ProbeText(*row) for row in rows))

    @property
    def texts(self) -> list[str]:
        return [item.text for item in self.items]

    @property
    def dimensions(self) -> int:
        return len(self.items[0].dense)

    def compare(self, result: EmbedResult) -> list[ProbeRow]:
        """Compare the vectors of `texts` with the probe's.

        Raises:
            ProtocolError: there are no dense vectors of the probe's dimensions.
        """
        shape = None if result.dense is None else result.dense.shape
        if result.dense is None or shape != (len(self.items), self.dimensions):
            raise ProtocolError(
                f"the probe has {len(self.items)} vectors of {self.dimensions} dimensions. "
                f"Given: {shape}"
            )
        own = np.stack([item.dense for item in self.items])
        cosines = _unit(result.dense) @ _unit(own).T  # [N, N]
        others = np.where(np.eye(len(cosines), dtype=bool), -1, cosines).max(axis=1)
        sparse: Sequence[SparseVector | None] = result.sparse or [None] * len(self.items)
        return [
            ProbeRow(item.name, float(cosine), float(other), _weight_difference(item.sparse, given))
            for item, cosine, other, given in zip(
                self.items, cosines.diagonal(), others, sparse, strict=True
            )
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the probe as JSON: dense vectors in base64 of little-endian float16."""
        items = [
            {
                "name": item.name,
                "text": item.text,
                "dense": base64.b64encode(item.dense.astype("<f2").tobytes()).decode(),
                "indices": item.sparse.indices.tolist(),
                "values": [round(value, 6) for value in item.sparse.values.tolist()],
            }
            for item in self.items
        ]
        return {"fingerprint": self.fingerprint, "model": self.model, "items": items}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Probe:
        """Raises ConfigurationError if `stored` is no probe."""
        try:
            items = tuple(_probe_text(item) for item in stored["items"])
            probe = cls(str(stored["fingerprint"]), str(stored["model"]), items)
            if {len(item.dense) for item in items} != {probe.dimensions} or not probe.dimensions:
                raise ValueError("vectors of several sizes")
        except (KeyError, TypeError, ValueError, IndexError, OverflowError):
            raise ConfigurationError("the probe is malformed: record it again") from None
        return probe

    def dumps(self) -> str:
        return json.dumps(self.as_dict(), ensure_ascii=False, indent=1)

    @classmethod
    def loads(cls, text: str | bytes) -> Probe:
        """Raises ConfigurationError if `text` is no probe."""
        try:
            stored = strict_json.loads(text)
        except ValueError:
            stored = {}
        return cls.from_dict(stored)


class ProbeCheck:
    """The outcome of the last comparison of a provider with a probe. Threads may share it."""

    def __init__(self, provider: str, probe: Probe) -> None:
        self.probe = probe
        self.reasons: list[str] = []  # why the vectors do not match; none if they do
        self._provider = provider
        self._checked_at: float | None = None

    def is_due(self) -> bool:
        return self._checked_at is None or time.monotonic() - self._checked_at >= TTL_SECONDS

    def record(self, result: EmbedResult) -> None:
        """Compare the vectors of the probe's texts, and log the outcome."""
        try:
            rows = self.probe.compare(result)
        except ProtocolError as error:
            self.reasons = [str(error)]
        else:
            self.reasons = [row.reason for row in rows if row.reason]
        self._checked_at = time.monotonic()
        if self.reasons:
            log.warning("vectors of %s are refused: %s", self._provider, "; ".join(self.reasons))
            return
        lowest = min(row.cosine for row in rows)
        fingerprint = self.probe.fingerprint
        log.info("%s passed the probe of %s: cosine %.5f", self._provider, fingerprint, lowest)


def _unit(vectors: Floats) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return vectors [N, D] of length 1. One of length 0 becomes NaN, which matches nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        doubles = vectors.astype(np.float64)
        return np.asarray(doubles / np.linalg.norm(doubles, axis=1, keepdims=True))


def _largest(vector: SparseVector) -> SparseVector:
    order = np.sort(np.argsort(-vector.values, kind="stable")[:WEIGHTS])
    return SparseVector(vector.indices[order], vector.values[order])


def _weight_difference(own: SparseVector, given: SparseVector | None) -> float | None:
    if given is None:
        return None
    weights = dict(zip(given.indices.tolist(), given.values.tolist(), strict=True))
    pairs = zip(own.indices.tolist(), own.values.tolist(), strict=True)
    return max((abs(value - weights.get(index, 0.0)) for index, value in pairs), default=0.0)


def _probe_text(item: Mapping[str, Any]) -> ProbeText:
    dense = np.frombuffer(base64.b64decode(item["dense"], validate=True), "<f2")
    sparse = SparseVector(
        np.array(item["indices"], np.uint32), np.array(item["values"], np.float32)
    )
    if not np.isfinite(dense).all() or sparse.indices.shape != sparse.values.shape:
        raise ValueError("vectors that are not finite")
    return ProbeText(str(item["name"]), str(item["text"]), dense.astype(np.float32), sparse)
