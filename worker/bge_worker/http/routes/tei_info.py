"""text-embeddings-inference's routes that need no inference: `/info`, `/tokenize`, `/decode`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypedDict

from msgspec import Meta

from ... import __version__
from ...engine.config import Role
from ...serving.openai import check_token_ids
from ...serving.tokenizing import tokenize_texts
from ...serving.validation import ForeignBody, Texts, as_texts
from .route import PROVIDER, InfoRoute, TextRoute
from .tei import TeiEmbedBody
from .tei_rerank import LABEL

if TYPE_CHECKING:  # imports torch
    from ...serving.service import Service


class TeiTokenizeBody(ForeignBody):
    inputs: Texts
    add_special_tokens: bool = True
    prompt_name: Any = None

    FIXED: ClassVar[Mapping[str, tuple[object, str]]] = TeiEmbedBody.FIXED

    def answer(self, service: Service) -> list[list[TeiToken]]:
        """Raises ValidationError: a limit is exceeded."""
        texts = as_texts(self.inputs, "inputs", service.settings.max_texts)
        tokenizer = service.engine.tokenizer("embed")
        lists = tokenize_texts(
            tokenizer, texts, "inputs", add_special_tokens=self.add_special_tokens
        )
        return [
            [
                {"id": id, "text": text, "special": special, "start": start, "stop": stop}
                for id, text, start, stop, special in tokens
            ]
            for tokens in lists
        ]


class TeiDecodeBody(ForeignBody):
    ids: Annotated[Any, Meta(description="Token ids, or lists of them", examples=[[[0, 5, 2]]])]
    skip_special_tokens: bool = True

    def answer(self, service: Service) -> list[str]:
        """Raises ValidationError: these are no ids of the vocabulary."""
        is_single = isinstance(self.ids, list) and self.ids and type(self.ids[0]) is int
        lists = [self.ids] if is_single else self.ids if isinstance(self.ids, list) else [self.ids]
        model, tokenizer = service.model("embed"), service.engine.tokenizer("embed")
        return [
            tokenizer.decode(
                check_token_ids(ids, "ids", model), skip_special_tokens=self.skip_special_tokens
            )
            for ids in lists
        ]


class TeiToken(TypedDict):
    id: int
    text: str
    special: bool
    start: int
    stop: int


class TeiInfo(TypedDict):
    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    auto_truncate: bool
    version: str


def get_info(service: Service, _: Mapping[str, str]) -> TeiInfo:
    return describe(service, "embed" if "embed" in service.models else "rerank")


def get_reranker_info(service: Service, _: Mapping[str, str]) -> TeiInfo:
    return describe(service, "rerank")


def describe(service: Service, role: Role) -> TeiInfo:
    """Describe one model: TEI serves one, and its clients look at the first `model_type`."""
    model, settings, runtime = service.model(role), service.settings, service.engine.runtime
    labels = {"id2label": {"0": LABEL}, "label2id": {LABEL: 0}}
    is_embedder = role == "embed"
    return {
        "model_id": model.model,
        "model_sha": model.revision,
        "model_dtype": runtime.dtype,
        "model_type": {"embedding": {"pooling": "cls"}} if is_embedder else {"reranker": labels},
        "max_concurrent_requests": settings.max_queue,
        "max_input_length": model.max_length,
        "max_batch_tokens": runtime.max_batch_tokens,
        "max_client_batch_size": settings.max_texts,
        "auto_truncate": False,
        "version": __version__,
    }


ROUTES = (
    TextRoute(("/tokenize",), "inputs", PROVIDER, TeiTokenizeBody, list[list[TeiToken]]),
    TextRoute(("/decode",), "ids", PROVIDER, TeiDecodeBody, list[str]),
)
INFO_ROUTES = (
    InfoRoute(("/info",), PROVIDER, get_info, TeiInfo),
    InfoRoute(("/reranker/info",), PROVIDER, get_reranker_info, TeiInfo),
)
