"""answer(payload) → reply: the corridor's front door, shared by every entry."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple, TypeVar, assert_never

import numpy as np

from .. import __version__
from ..engine.checkpoint import Role
from ..engine.engine import Embedding, Engine, ModelInfo, PackedEngine, Result
from ..engine.tokenizer import Encoded
from ..errors import NotServedError, ValidationError, WorkerError
from ..settings import Settings
from . import dialects
from . import fitness as golden
from . import responses as response
from .batcher import Batcher, Counts, Finished, logged_inference_error
from .requests import (
    EmbedRequest,
    InfoRequest,
    OpenAIRequest,
    Request,
    RerankRequest,
    Work,
    parse,
    shortened,
)

Reply = TypeVar("Reply")
LARGE_BYTES = 1 << 18  # of a request; about a millisecond to look through
PACKAGES = ("torch", "tokenizers", "safetensors", "numpy")


class Load(NamedTuple):
    """Requests not yet answered, and what was done since the start."""

    waiting: int
    counts: Counts
    recomputed: int
    max_batch_tokens: int


class Service:
    """An engine behind its queue."""

    def __init__(
        self, engine: Engine, settings: Settings, observe: Callable[[Finished], None] | None = None
    ) -> None:
        """`observe` is told of every request that was computed.

        The queue has room for what an entry lets in: `max_queue` requests, and beside them the
        `concurrency` RunPod jobs that it accepted earlier.
        """
        self._observe = observe or (lambda finished: None)
        self._engine = engine
        self._settings = settings
        self._batcher = Batcher(engine, self._admit, settings.max_queue + settings.concurrency)

    @classmethod
    def start(
        cls, settings: Settings, observe: Callable[[Finished], None] | None = None
    ) -> Service:
        """Load the models and be ready to answer.

        Raises:
            StartError: a setting, a checkpoint or a missing package; one sentence says which.
        """
        return cls(load_engine(settings), settings, observe)

    async def answer(self, payload: object) -> dict[str, Any]:
        """Answer one payload of the contract. Cancel the call to give its place in the queue up.

        Raises:
            WorkerError: whatever went wrong, as the caller may hear it.
        """
        return await self.respond(lambda: parse(payload, self._settings.max_texts), dict)

    async def respond(
        self,
        read: Callable[[], Request],
        write: Callable[[dict[str, Any]], Reply],
        size: int = 0,
    ) -> Reply:
        """What `write` makes of the reply to the request that `read` returns.

        Looking through a large request, of `size` bytes, and building a large reply take long, so
        both may run on another thread.

        Raises:
            WorkerError: whatever went wrong, as the caller may hear it; from `read` too.
        """
        try:
            request = await asyncio.to_thread(read) if size > LARGE_BYTES else read()
            return await self._respond(request, write)
        except WorkerError:
            raise
        except Exception as error:
            raise logged_inference_error(error) from None

    async def _respond(self, request: Request, write: Callable[[dict[str, Any]], Reply]) -> Reply:
        match request:
            case EmbedRequest():
                model = self.model("embed")
                build = partial(response.embed_reply, request, model=model)
                return await self._compute(request, lambda finished: write(build(finished)))
            case RerankRequest():
                model = self.model("rerank")
                build = partial(response.rerank_reply, request, model=model)
                return await self._compute(request, lambda finished: write(build(finished)))
            case OpenAIRequest(route=dialects.OPENAI_MODELS):
                return write(dialects.openai_models(self.models.values()))
            case OpenAIRequest():
                native = self._openai_embed_request(request)
                return await self._respond(
                    native, lambda reply: write(dialects.openai_embed_reply(reply))
                )
            case InfoRequest():
                return write(self.info())
            case _:
                assert_never(request)

    async def _compute(self, work: Work, build: Callable[[Finished], Reply]) -> Reply:
        finished = await asyncio.wrap_future(self._batcher.submit(work))
        self._observe(finished)
        if response.is_small(work, finished.encoded):
            return build(finished)
        return await asyncio.to_thread(build, finished)

    def _openai_embed_request(self, request: OpenAIRequest) -> EmbedRequest:
        if request.route != dialects.OPENAI_EMBEDDINGS:
            raise ValidationError(
                f"`openai_route` must be {dialects.OPENAI_EMBEDDINGS} or {dialects.OPENAI_MODELS}. "
                f"Given: {shortened(request.route)}"
            )
        model = self.model("embed")
        return dialects.openai_embed_request(request.body, model, self._settings)

    @property
    def models(self) -> dict[Role, ModelInfo]:
        """What is loaded, by role."""
        return self._engine.models

    def model(self, role: Role) -> ModelInfo:
        """Raises NotServedError: this worker does not load a model of that role."""
        if role not in self._engine.models:
            variable = {"embed": "BGE_EMBED_MODEL", "rerank": "BGE_RERANK_MODEL"}[role]
            raise NotServedError(f"this worker loads no model to {role}: `{variable}` is empty")
        return self._engine.models[role]

    def info(self) -> dict[str, Any]:
        """What is loaded, where it runs, and within which limits."""
        limits = ("max_texts", "max_request_tokens", "max_queue", "max_reply_bytes", "concurrency")
        return {
            "models": {role: asdict(model) for role, model in self._engine.models.items()},
            **asdict(self._engine.runtime),
            "limits": {name: getattr(self._settings, name) for name in limits},
            "versions": {
                "bge-serverless": __version__,
                "python": platform.python_version(),
                **{package: version(package) for package in PACKAGES},
            },
        }

    @property
    def healthy(self) -> bool:
        """Whether this process can still answer; if not, only a new one can."""
        return self._batcher.healthy

    async def check(self) -> None:
        """Answer a request for each model: finite, the same twice, and as published.

        Before the worker takes any other: the engine is used by one thread at a time.

        Raises:
            RuntimeError: the worker is not fit to take jobs.
            WorkerError: it cannot answer.
        """
        if not self.healthy:
            raise RuntimeError("a thread of the batcher is dead")
        values: list[golden.Golden] = []
        if "embed" in self._engine.models:
            one, other = [await self._results(golden.EMBED) for _ in range(2)]
            _compare([r.dense for r in one + other if isinstance(r, Embedding)])
            if golden.has_golden_values(self._engine.models["embed"]):
                values += golden.embed_values(one)
        if "rerank" in self._engine.models:
            logits = [logit for work in golden.RERANK for logit in await self._results(work)]
            if golden.has_golden_values(self._engine.models["rerank"]):
                values += golden.rerank_values(logits)
        wrong = next((value for value in values if not value.agrees), None)
        if wrong is not None:
            raise RuntimeError(
                f"{wrong.name}: published {wrong.published}, found {wrong.found:.4f} here"
            )

    async def _results(self, work: Work) -> list[Result]:
        """Straight from the engine: the limits of a request are not this one's."""

        def compute() -> list[Result]:
            return list(
                self._engine.run(work.outputs, self._engine.encode(work, 0, len(work.texts)))
            )

        return await asyncio.to_thread(compute)

    @property
    def load(self) -> Load:
        """How busy this worker is and was, for its metrics."""
        return Load(
            waiting=self._batcher.depth,
            counts=self._batcher.counts,
            recomputed=self._engine.recomputed,
            max_batch_tokens=self._engine.runtime.max_batch_tokens,
        )

    def close(self, timeout: float | None = None) -> None:
        """Finish what is queued within `timeout` seconds, then stop."""
        self._batcher.close(timeout)

    def _admit(self, work: Work, encoded: Sequence[Encoded]) -> None:
        role: Role = "embed" if isinstance(work, EmbedRequest) else "rerank"
        response.admit(work, encoded, self._engine.models[role], self._settings)


def _compare(dense: Sequence[np.ndarray | None]) -> None:
    """Vectors of the same texts twice over. Raises RuntimeError: they differ, or are none."""
    vectors = np.array(dense, np.float32)  # [2 N, D]
    once, again = np.split(vectors, 2)
    if not np.allclose(once, again, atol=1e-3):
        raise RuntimeError("the same text has two vectors")
    if not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
        raise RuntimeError("a dense vector is not of length one")


def load_engine(settings: Settings) -> Engine:
    """The engine that `BGE_ENGINE` names."""
    if settings.engine == "packed":
        return PackedEngine(settings)
    # Imported here alone: FlagEmbedding and transformers take seconds and are not installed.
    from ..engine.reference import ReferenceEngine

    return ReferenceEngine(settings)
