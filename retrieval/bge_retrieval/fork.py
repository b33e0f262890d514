"""Objects whose locks and connections must not be shared with the child of a fork.

A thread that held a lock does not exist in the child. On a shared connection, parent and child
would read each other's responses.
"""

from __future__ import annotations

import os
import sys
import weakref
from typing import Protocol


class ForkAware(Protocol):
    def renew_after_fork(self) -> None:
        """Replace locks and connections, in the child."""


_objects: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def register(fork_aware: ForkAware) -> None:
    """Call `renew_after_fork` in the child of every fork."""
    _objects.add(fork_aware)


def _after_fork() -> None:
    for fork_aware in list(_objects):
        fork_aware.renew_after_fork()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
