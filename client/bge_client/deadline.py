"""Deadlines that shut down sockets, and sessions that are safe to use after a fork."""

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

MAX_CONNECTIONS = 64  # kept open, for threads that share a client


class Deadline:
    """The time limit of one call. At its end, or on `cancel`, the call's sockets are shut down.

    A read timeout alone is not enough: it never expires if a server sends a byte now and then.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end_time = float("inf")  # until `__enter__`
        self._process_id = os.getpid()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._sockets: dict[int, socket.socket] = {}  # by thread
        self._timer = threading.Timer(seconds, self.cancel)
        self._timer.daemon = True

    def __enter__(self) -> Deadline:
        self._end_time = time.monotonic() + self.seconds
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    @property
    def remaining(self) -> float:
        return max(0.0, self._end_time - time.monotonic())

    def cancel(self) -> None:
        """Wake every thread that waits in this call.

        Does nothing in the child of a fork, whose parent uses the sockets.
        """
        if os.getpid() != self._process_id:
            return
        with self._lock:
            self._ended.set()
            for open_socket in self._sockets.values():
                _shut_down(open_socket)

    def sleep(self, seconds: float) -> None:
        """Sleep. Raises DeadlineError if the deadline passes."""
        self._ended.wait(seconds)
        self.check()

    def check(self, cause: BaseException | None = None) -> None:
        """Raises DeadlineError if the deadline has passed or the call was cancelled."""
        if self._ended.is_set() or self.remaining == 0:
            raise DeadlineError(f"not done within {self.seconds:g} seconds") from cause

    @contextmanager
    def tracking_sockets(self) -> Iterator[None]:
        """Track the sockets that this thread uses inside the block."""
        _thread_state.deadline = self
        try:
            yield
        finally:
            _thread_state.deadline = None
            with self._lock:
                self._sockets.pop(threading.get_ident(), None)

    def track_socket(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets[threading.get_ident()] = sock
            if self._ended.is_set():
                _shut_down(sock)


class _ThreadState(threading.local):
    deadline: Deadline | None = None


_thread_state = _ThreadState()


def _shut_down(sock: socket.socket) -> None:
    with suppress(OSError):  # closed already
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own: it waits for the peer


class _TrackedConnection:
    """A connection that registers its socket with the deadline of the thread's current call."""

    sock: socket.socket | None

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self._register_socket()

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._register_socket()
        super().request(*args, **kwargs)  # type: ignore[misc]

    def _register_socket(self) -> None:
        if _thread_state.deadline is not None and isinstance(self.sock, socket.socket):
            _thread_state.deadline.track_socket(self.sock)


class _HTTPConnection(_TrackedConnection, HTTPConnection):
    pass


class _HTTPSConnection(_TrackedConnection, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOL_CLASSES

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOL_CLASSES
        return manager


_POOL_CLASSES = {"http": _HTTPPool, "https": _HTTPSPool}


def new_session() -> requests.Session:
    """Return a session that threads can share and a `Deadline` can interrupt. Drops cookies."""
    session = requests.Session()
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(pool_connections=4, pool_maxsize=MAX_CONNECTIONS))
    return session


# ---------------------------------------------------------------------------- after a fork


_sessions: weakref.WeakSet[requests.Session] = weakref.WeakSet()


def renew_after_fork(session: requests.Session) -> None:
    """Give the session new connections in the child of every fork.

    On shared connections parent and child would read each other's responses.
    """
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
