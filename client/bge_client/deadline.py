"""The time a call has, and sessions: cut when it is over, and each process' own after a fork."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from .errors import DeadlineError

CONNECTIONS = 64  # kept open, of threads that share a client


class Deadline:
    """The time one call has. When it is over, or the caller gives up, its sockets are cut.

    A read timeout alone would not do: a server that sends a byte now and then never meets it.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends = float("inf")  # until it begins
        self._process = os.getpid()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._sockets: dict[int, socket.socket] = {}  # by thread
        self._timer = threading.Timer(seconds, self.cut)
        self._timer.daemon = True

    def __enter__(self) -> Deadline:
        self._ends = time.monotonic() + self.seconds
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    @property
    def remaining(self) -> float:
        return max(0.0, self._ends - time.monotonic())

    def cut(self) -> None:
        """End it: whoever waits for something in this call stops waiting.

        Does nothing in the child of a fork: the sockets are those its parent is using.
        """
        if os.getpid() != self._process:
            return
        with self._lock:
            self._over.set()
            for open_socket in self._sockets.values():
                _shut(open_socket)

    def sleep(self, seconds: float) -> None:
        """Raises DeadlineError: the time is over meanwhile."""
        self._over.wait(seconds)
        self.check()

    def check(self, cause: BaseException | None = None) -> None:
        """Raises DeadlineError: the time is over."""
        if self._over.is_set() or self.remaining == 0:
            raise DeadlineError(f"not done within {self.seconds:g} seconds") from cause

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The sockets this thread uses meanwhile belong to this call."""
        _current.deadline = self
        try:
            yield
        finally:
            _current.deadline = None
            with self._lock:
                self._sockets.pop(threading.get_ident(), None)

    def watch(self, used: socket.socket) -> None:
        with self._lock:
            self._sockets[threading.get_ident()] = used
            if self._over.is_set():
                _shut(used)


class _Current(threading.local):
    deadline: Deadline | None = None


_current = _Current()


def _shut(used: socket.socket) -> None:
    with suppress(OSError):  # closed already
        socket.socket.shutdown(used, socket.SHUT_RDWR)  # past TLS: its own waits for the other end


class _Watched:
    """A connection that tells the current call of its socket."""

    sock: socket.socket | None

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self._tell()

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._tell()
        super().request(*args, **kwargs)  # type: ignore[misc]

    def _tell(self) -> None:
        if _current.deadline is not None and isinstance(self.sock, socket.socket):
            _current.deadline.watch(self.sock)


class _HTTPConnection(_Watched, HTTPConnection):
    pass


class _HTTPSConnection(_Watched, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager


_POOLS = {"http": _HTTPPool, "https": _HTTPSPool}


def new_session() -> requests.Session:
    """A session that threads can share and whose exchanges a `Call` can cut."""
    session = requests.Session()
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(pool_connections=4, pool_maxsize=CONNECTIONS))
    return session


# ---------------------------------------------------------------------------- after a fork


_sessions: weakref.WeakSet[requests.Session] = weakref.WeakSet()


def renew_after_fork(session: requests.Session) -> None:
    """Give the child of every fork connections of its own.

    With its parent's, either of the two would read what was answered to the other.
    """
    _sessions.add(session)


def _after_fork() -> None:
    for session in list(_sessions):
        for adapter in session.adapters.values():
            if isinstance(adapter, HTTPAdapter):
                for manager in (adapter.poolmanager, *adapter.proxy_manager.values()):
                    _renew(manager)
        jar: Any = session.cookies
        jar._cookies_lock = threading.RLock()  # a thread of the parent's may hold the old one


def _renew(manager: PoolManager) -> None:
    """Leave the inherited pools without their locks: a thread of the parent's may hold them.

    To close an inherited socket, or a TLS one, sends nothing: the parent's stays open.
    """
    inherited = manager.pools
    manager.pools = PoolManager(inherited._maxsize).pools
    for pool in inherited._container.values():
        if (idle := pool.pool) is not None:
            for connection in filter(None, idle.queue):
                connection.close()
            type(idle).__init__(idle, idle.maxsize)  # urllib3 empties it when the pool is dropped


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
