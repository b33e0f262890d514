"""A Qdrant client whose process is killed at a chosen call."""

from __future__ import annotations

from typing import Any

from qdrant_client import QdrantClient


class Killed(BaseException):
    """Not an Exception, so that no error handler catches it."""


class KilledClient:
    """A Qdrant client whose process is killed before or after the n-th call."""

    def __init__(self, client: QdrantClient, kill_at: int, kill_after_call: bool) -> None:
        self._client, self._kill_at, self._kill_after_call = client, kill_at, kill_after_call
        self.calls = 0

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._client, method)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self._kill_at and not self._kill_after_call:
                raise Killed
            result = call(*args, **kwargs)
            if self.calls == self._kill_at:
                raise Killed
            return result

        return counted
