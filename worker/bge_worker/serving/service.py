"""A request in, a reply out: the engine behind its queue, the same for every transport."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version

from .. import __version__
from ..engine.config import ModelInfo, Role
from ..engine.engine import Engine
from ..errors import NotServedError, WorkerError, logged_inference_error
from ..settings import Settings
from . import golden_values
from .batcher import Batcher, Finished
from .limits import Limits
from .requests import InferenceRequest, Reply, RerankRequest, has_small_reply
from .responses import build_reply
from .windows import split_documents

PACKAGES = ("torch", "tokenizers", "safetensors", "numpy")
MODEL_SETTINGS: dict[Role, str] = {"embed": "BGE_EMBED_MODEL", "rerank": "BGE_RERANK_MODEL"}


class Service:
    def __init__(
        self, engine: Engine, settings: Settings, observe: Callable[[Finished], None] | None = None
    ) -> None:
        """`observe` is called for every computed request. `engine` and `batcher` are public for
        metrics.

        The queue holds what the transports accept: `max_queue` requests, and beside them
        `concurrency` RunPod jobs that were accepted earlier.
        """
        self.settings = settings
        self.models = engine.models
        self._observe = observe
        self.engine = engine
        limits = Limits(engine.models, settings)
        self.batcher = Batcher(engine, limits, settings.max_queue + settings.concurrency)

    async def answer(self, request: InferenceRequest) -> Reply:
        """Compute a request and return its native reply. Cancel the call to leave the queue.

        Raises WorkerError: the request exceeds a limit or could not be computed.
        """
        model = self.model(request.role)
        try:
            if isinstance(request, RerankRequest) and request.max_chunks_per_doc > 1:
                tokenizer = self.engine.tokenizer("rerank")
                limits = (model.max_length, self.settings.max_request_tokens)
                request = await asyncio.to_thread(split_documents, request, tokenizer, *limits)
            finished = await asyncio.wrap_future(self.batcher.submit(request))
            if self._observe is not None:
                self._observe(finished)
            if has_small_reply(request, sum(len(text.ids) for text in finished.encoded)):
                return Reply(build_reply(request, finished, model, self.engine))
            body = await asyncio.to_thread(build_reply, request, finished, model, self.engine)
            return Reply(body, is_small=False)
        except WorkerError:
            raise
        except Exception as error:
            raise logged_inference_error(error) from None

    def model(self, role: Role) -> ModelInfo:
        """Raises NotServedError if no model of that role is loaded."""
        if role not in self.models:
            raise NotServedError(
                f"this worker loads no model to {role}: `{MODEL_SETTINGS[role]}` is empty"
            )
        return self.models[role]

    def info(self) -> Reply:
        """Return what is loaded, where it runs, and the limits."""
        limits = ("max_texts", "max_request_tokens", "max_queue", "max_reply_bytes", "concurrency")
        versions = {package: version(package) for package in PACKAGES}
        return Reply(
            {
                "models": {role: asdict(model) for role, model in self.models.items()},
                **asdict(self.engine.runtime),
                "limits": {name: getattr(self.settings, name) for name in limits},
                "versions": {
                    "bge-serverless": __version__,
                    "python": platform.python_version(),
                    **versions,
                },
            }
        )

    @property
    def healthy(self) -> bool:
        """Whether this process can still answer; if not, it must be replaced."""
        return self.batcher.healthy

    async def check(self) -> None:
        """Check that the models compute correctly. Call it before the first request.

        Raises:
            RuntimeError: the worker is not fit to take requests.
            WorkerError: it cannot answer.
        """
        if not self.healthy:
            raise RuntimeError("a thread of the batcher is dead")
        await asyncio.to_thread(golden_values.check, self.engine)

    def close(self, timeout: float | None = None) -> None:
        """Finish the queue within `timeout` seconds, then stop."""
        self.batcher.close(timeout)
