"""How this process uses cores and memory, where the libraries' defaults do not suit a server."""

from __future__ import annotations

import ctypes
import os
import threading
import time

TRIM_SECONDS = 10.0  # between two returns of freed memory


def prepare_process() -> None:
    """Call this before torch is imported and before any other thread starts."""
    # On a CPU, PyTorch's idle threads spin by default, on cores that other threads need: a query
    # beside a bulk request took three times as long. Between two operations they should spin: woken
    # for each, a single query took 7.7 ms instead of 4.5 (2,000 and 10,000 turns, six layers of
    # 384).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # oneDNN compiles a product for each number of rows, and keeps the code of the last 1,024: more
    # than a mixed load of both models needs (`padded_rows`), and it fragments the heap.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")
    # One thread tokenises 2.3 million tokens a second, more than any device computes. More threads
    # contend for the one arena of `_keep_freed_memory`: on two cores they take as long as one, and
    # twice the processor time.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next micro-batch instead of returning it.

    By default it maps and unmaps every large tensor, and on a CPU the page faults take a good part
    of a forward. All threads share one arena: a thread's own arena returns blocks over 64 MiB
    anyway. Every `TRIM_SECONDS` free memory is returned, because a mixed load fragments the heap.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # neither musl nor macOS has it
        m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_mmap_threshold, 2**31 - 1)
        libc.mallopt(m_arena_max, 1)
        threading.Thread(target=_trim_regularly, args=(libc,), daemon=True).start()


def _trim_regularly(libc: ctypes.CDLL) -> None:
    while True:
        time.sleep(TRIM_SECONDS)
        libc.malloc_trim(0)  # without the GIL
