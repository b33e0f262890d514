"""The manifest of a job, and an entry for each partition that is finished.

OUT/manifest.json is written once. It fixes the options, the model and the partitions. An entry,
OUT/partitions/000012.json, is written after the files of its partition, so a partition without a
readable entry is not finished. `folder.py` says how the files are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from bge_client import ConfigurationError, FingerprintError
from bge_client.codec import Dtype

FORMAT = 1


@dataclass(frozen=True)
class Options:
    """What decides the vectors of a job and its partitions. `colbert_pool` 1 pools nothing."""

    dense_dtype: Dtype = "float16"
    sparse: bool = True
    colbert: bool = False
    colbert_pool: int = 1
    max_length: int | None = None
    text_fields: tuple[str, ...] = ("text",)
    partition_rows: int = 8192


@dataclass(frozen=True)
class ModelIdentity:
    """The model of a job. `probe` is `Probe.as_dict()`."""

    model: str
    revision: str | None
    fingerprint: str
    dimensions: int
    probe: dict[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Manifest:
    """A job: `source` is `Source.identity()`, and a partition is its index in `partitions`."""

    model: ModelIdentity
    options: Options
    source: dict[str, Any]
    partitions: list[dict[str, Any]] = field(repr=False)

    @property
    def rows(self) -> int:
        return sum(part["rows"] for part in self.partitions)

    def as_dict(self) -> dict[str, Any]:
        options = asdict(self.options) | {"text_fields": list(self.options.text_fields)}
        rest = {"options": options, "source": self.source, "partitions": self.partitions}
        return {"format": FORMAT, **asdict(self.model), **rest}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], label: str) -> Manifest:
        """Raises ConfigurationError if `stored` is no manifest of this format."""
        try:
            if stored["format"] != FORMAT:
                raise ConfigurationError(
                    f"{label} has format {stored['format']}. This version reads format {FORMAT}"
                )
            model = ModelIdentity(
                **{item.name: stored[item.name] for item in fields(ModelIdentity)}
            )
            values = {item.name: stored["options"][item.name] for item in fields(Options)}
            options = Options(**values | {"text_fields": tuple(values["text_fields"])})
            return cls(model, options, dict(stored["source"]), list(stored["partitions"]))
        except (KeyError, TypeError):
            raise ConfigurationError(f"{label} is not the manifest of `bge bulk`") from None

    def check_options(self, options: Options, source: Mapping[str, Any], label: str) -> None:
        """Raises ConfigurationError: the job was started with other options or another source."""
        for name, stored in asdict(self.options).items():
            given = getattr(options, name)
            if stored != given:
                raise _changed(label, f"`{name}`", _plain(stored), _plain(given))
        for name in self.source.keys() | source.keys():
            stored, given = self.source.get(name), source.get(name)
            if stored == given:
                continue
            if name == "files":
                stored, given = _first_difference(stored or [], given or [])
            raise _changed(label, f"source `{name}`", stored, given)

    def check_model(self, model: ModelIdentity, label: str) -> None:
        """Raises FingerprintError: the vectors in the folder are of another model."""
        if model.fingerprint != self.model.fingerprint:
            raise FingerprintError(
                f"{label} holds vectors of {self.model.model}, fingerprint "
                f"{self.model.fingerprint}. Given: {model.model}, {model.fingerprint}"
            )


def _changed(label: str, name: str, stored: object, given: object) -> ConfigurationError:
    return ConfigurationError(
        f"{label} was started with {name} {stored}. Given: {given}. Pass the same, or another --to"
    )


def _plain(value: object) -> object:
    return ", ".join(value) if isinstance(value, tuple) else value


def _first_difference(stored: list[dict[str, Any]], given: list[dict[str, Any]]) -> tuple[str, str]:
    """Return the first file that differs, of each list."""
    sizes = [{item["name"]: item["bytes"] for item in files} for files in (stored, given)]
    names = sorted(sizes[0].keys() | sizes[1].keys())
    name = next(name for name in names if sizes[0].get(name) != sizes[1].get(name))
    texts = [f"{name} of {size[name]} bytes" if name in size else f"no {name}" for size in sizes]
    return texts[0], texts[1]


@dataclass(frozen=True)
class Entry:
    """A finished partition. `seconds` are of embedding; `sha256` and `bytes` are the Parquet
    file's. `tokens` are those the model read; `rows` are `written` and `failed`."""

    partition: int
    rows: int
    written: int
    failed: int
    truncated: int
    tokens: int
    seconds: float
    fingerprint: str
    device: str
    actor: str
    sha256: str
    bytes: int

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Entry:
        """Raises KeyError or TypeError: `stored` is no entry."""
        return cls(**{item.name: stored[item.name] for item in fields(cls)})
