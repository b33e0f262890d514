"""A Qdrant client whose process is killed at a chosen call."""

from __future__ import annotations

from typing import Any

from qdrant_client import QdrantClient


class Killed(BaseException):
    """Not an Exception, so that no error handler catches it."""


class KilledClient:
    """A Qdrant client whose process is killed after the n-th call, as if before the next one."""

    def __init__(self, client: QdrantClient, kill_at: int) -> None:
        self._client, self._kill_at = client, kill_at
        self.calls = 0

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._client, method)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            result = call(*args, **kwargs)
            if self.calls == self._kill_at:
                raise Killed
            return result

        return counted
