"""How this process uses cores and memory, where the libraries' own ways do not suit a server."""

from __future__ import annotations

import ctypes
import os
import threading
import time

GIVE_BACK_SECONDS = 10.0


def prepare_process() -> None:
    """Call it before torch is imported and before any other thread is started."""
    # On a CPU, threads of PyTorch's that wait for one another spin by default for as long as they
    # may run, on cores that others need: a query beside a bulk request took three times as long.
    # They must spin from one operation to the next, though: woken for each, a lone query took
    # 7.7 ms where it takes 4.5 (2,000 and 10,000 turns, six layers of 384).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # oneDNN keeps code for the last 1,024 shapes it has met. Ours hardly ever come again, and the
    # heap grew around what was kept (`make soak`).
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next micro-batch instead of giving it back.

    By default it maps and unmaps every large tensor anew, and on a CPU the page faults take a
    good part of a forward. One arena for all threads, because a thread's own gives blocks over
    64 MiB back all the same.

    Now and then all that is free does go back: a mixed load fragments the heap.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # neither musl nor macOS has it
        m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_mmap_threshold, 2**31 - 1)
        libc.mallopt(m_arena_max, 1)
        threading.Thread(target=_give_back_freed_memory, args=(libc,), daemon=True).start()


def _give_back_freed_memory(libc: ctypes.CDLL) -> None:
    while True:
        time.sleep(GIVE_BACK_SECONDS)
        libc.malloc_trim(0)  # without the interpreter's lock
