"""Connections that are not shared with the child of a fork.

On shared connections parent and child would read each other's responses.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import PoolManager

_sessions: weakref.WeakSet[requests.Session] = weakref.WeakSet()


def renew_after_fork(session: requests.Session) -> None:
    """Give the session new connections in the child of every fork."""
    _sessions.add(session)


def _after_fork() -> None:
    for session in list(_sessions):
        for adapter in session.adapters.values():
            if isinstance(adapter, HTTPAdapter):
                for manager in (adapter.poolmanager, *adapter.proxy_manager.values()):
                    _renew(manager)
        jar: Any = session.cookies
        jar._cookies_lock = threading.RLock()  # a thread of the parent may have held the old one


def _renew(manager: PoolManager) -> None:
    """Replace the inherited pools without taking their locks: a lost thread may hold them.

    Closing an inherited socket, TLS or not, sends nothing, so the parent's stays open.
    """
    inherited = manager.pools
    manager.pools = PoolManager(inherited._maxsize).pools
    for pool in inherited._container.values():
        if (idle := pool.pool) is not None:
            for connection in filter(None, idle.queue):
                connection.close()
            type(idle).__init__(idle, idle.maxsize)  # new locks, for urllib3 drains it on deletion


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
