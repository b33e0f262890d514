"""Locks and temporary folders, for runs that may write the same folder.

The lock is a file beside the folder, `.NAME.lock`, that contains the process's id. The kernel
releases it when the process ends, even if killed; the next run reuses the file.
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
    """Another process is writing the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`.

    Raises:
        LockedError: another process holds it; the message names its id.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    lock = _lock(path, folder)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release, so never another run's file
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
        if _is_file_at(lock, path):
            os.ftruncate(lock, 0)
            os.write(lock, str(os.getpid()).encode())
            return lock
        os.close(lock)  # its previous holder removed the file in the meantime


def _is_file_at(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def temporary(destination: Path) -> Iterator[Path]:
    """A new folder beside `destination`, removed afterwards. Call it with the lock held.

    Folders that killed runs left behind are removed first.
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
    """Move every file of `folder` into `destination`; other files there stay."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            target = destination / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
