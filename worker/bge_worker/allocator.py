"""glibc's allocator, set for a process that makes the same large tensors over and over."""

from __future__ import annotations

import ctypes
import threading
import time

GIVE_BACK_SECONDS = 10.0


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next micro-batch instead of giving it back.

    By default it maps and unmaps every large tensor anew, and on a CPU the page faults take a
    good part of a forward. One arena for all threads, because a thread's own gives blocks over
    64 MiB back all the same: so call this before any other thread is started.

    Now and then all that is free does go back: a mixed load fragments the heap, which would grow
    for as long as the load lasts (`make soak`).
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
