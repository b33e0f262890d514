"""Both drivers of the client behind one blocking interface, for tests that run with each."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

from bge_client import AsyncClient, Client

END = object()


class BlockingAsyncClient:
    """`AsyncClient` with the blocking methods of `Client`: its event loop runs in a thread."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.client = AsyncClient(*args, **options)
        self._start_loop()

    def _start_loop(self) -> None:
        self._process_id = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> BlockingAsyncClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self.client)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        return lambda *args, **options: self._wait_for(method(*args, **options))

    def embed_iter(self, *args: Any, **options: Any) -> Iterator[Any]:
        vectors = self.client.embed_iter(*args, **options)
        try:
            while (item := self._wait_for(_next(vectors))) is not END:
                yield item
        finally:
            self._wait_for(vectors.aclose())

    def close(self) -> None:
        self._wait_for(self.client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait_for(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        if os.getpid() != self._process_id:  # the child of a fork has no thread for the loop
            self._start_loop()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


async def _next(vectors: Any) -> Any:
    return await anext(vectors, END)


CLIENTS = {"sync": Client, "async": BlockingAsyncClient}
