"""Writing a folder that another run may want to write at the same time.

A lock lies beside the folder, as `.NAME.lock`, and holds the process's id. The kernel lets go of it
when the process ends, however it ends; the next run takes over the file that a kill left behind.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BuilderError


class LockedError(BuilderError):
    """Another process is writing there."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one that writes `folder`.

    Raises:
        LockedError: another process holds the lock; names its id.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    lock = _lock(path, folder)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock is let go: nobody else's can lie there
        os.close(lock)


def _lock(path: Path, folder: Path) -> int:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode() or "unknown"
            os.close(lock)
            raise LockedError(f"another run (pid {holder}) is writing `{folder}`") from None
        if _is_at(lock, path):
            os.ftruncate(lock, 0)
            os.write(lock, str(os.getpid()).encode())
            return lock
        os.close(lock)  # its holder removed the file in between


def _is_at(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def temporary(destination: Path) -> Iterator[Path]:
    """A new folder beside `destination`, whose lock is held; it is gone afterwards.

    Those that killed runs left behind go first.
    """
    prefix = f".writing-{destination.name}."
    for path in destination.parent.iterdir():
        if re.fullmatch(re.escape(prefix) + "[0-9a-f]{8}", path.name):
            shutil.rmtree(path, ignore_errors=True)
    folder = destination.with_name(prefix + secrets.token_hex(4))
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def merge(folder: Path, destination: Path) -> None:
    """Move every file of `folder` to where it belongs in `destination`; other files there stay."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            target = destination / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
