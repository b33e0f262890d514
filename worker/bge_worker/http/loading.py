"""The service, which loads while the server already listens."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TYPE_CHECKING

from ..errors import InferenceError, StartError

if TYPE_CHECKING:  # imports torch
    from ..serving.service import Service


class LoadingService:
    def __init__(self, future: Future[Service]) -> None:
        self._future = future

    @property
    def is_loaded(self) -> bool:
        """Also true after a failed start."""
        return self._future.done()

    @property
    def is_healthy(self) -> bool:
        is_started = self._future.done() and self._future.exception() is None
        return is_started and self._future.result().healthy

    async def wait(self) -> Service:
        """Return the service once the models are loaded.

        Raises InferenceError: they could not be loaded, and the server is about to stop.
        """
        try:
            if self._future.done():
                return self._future.result()
            return await asyncio.shield(asyncio.wrap_future(self._future))
        except StartError:
            raise InferenceError("this worker could not start; its log says why") from None
