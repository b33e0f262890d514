"""The files of each published checkpoint, with their sizes and hashes: the rows of `pins.toml`."""

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PinnedFile:
    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Pin:
    """One repository at one commit. `files` are in ascending size, so that errors show early."""

    repo: str
    revision: str
    licence: str
    files: tuple[PinnedFile, ...]

    @property
    def name(self) -> str:
        """The repository's name without its owner: an argument and a folder's name."""
        return self.repo.rpartition("/")[2]

    @property
    def hashes(self) -> dict[str, str]:
        """The sha256 of every file by its name."""
        return {file.name: file.sha256 for file in self.files}


def read_pins(path: Path) -> tuple[Pin, ...]:
    pins = []
    for pin in tomllib.loads(path.read_text("utf-8"))["pin"]:
        rows = map(str.split, pin.pop("files").splitlines())
        files = tuple(PinnedFile(name, int(size), sha256) for sha256, size, name in rows)
        pins.append(Pin(**pin, files=files))
    return tuple(pins)


PINS = read_pins(Path(__file__).with_name("pins.toml"))
