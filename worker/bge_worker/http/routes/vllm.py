"""vLLM's score and tokenize.

https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from msgspec import Meta

from ...engine.config import ModelInfo
from ...errors import ValidationError
from ...serving.model_names import check_model
from ...serving.openai import NEUTRAL, Usage
from ...serving.requests import DEFAULT_PAIR_LENGTH, MAX_LENGTH, MIN_PAIR_LENGTH, RerankRequest
from ...serving.tokenizing import tokenize_texts
from ...serving.validation import ForeignBody, Query, Texts, as_texts
from ...settings import Settings
from .openai import OPENAI
from .route import Route, TextRoute

if TYPE_CHECKING:  # imports torch
    from ...serving.service import Service


class ScoreBody(ForeignBody):
    """Scores of one `text_1` with each of `text_2`, or of as many, pair by pair."""

    text_1: Annotated[
        Query | Annotated[list[Query], Meta(min_length=1)], Meta(examples=["как найти минимум"])
    ]
    text_2: Texts
    model: str | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    priority: NEUTRAL = None
    activation: bool = True
    use_activation: bool = True  # the newer name

    def to_request(self, model: ModelInfo, settings: Settings) -> RerankRequest:
        """Raises ValidationError: the numbers of texts differ, or a limit is exceeded."""
        check_model(self.model, model, settings.rerank_aliases)
        queries = as_texts(self.text_1, "text_1", settings.max_texts)
        documents = as_texts(self.text_2, "text_2", settings.max_texts)
        if len(queries) not in (1, len(documents)):
            raise ValidationError(
                f"`text_1` must be one text, or as many as `text_2`: {len(documents)}. "
                f"Given: {len(queries)}",
                field="text_1",
            )
        limit = self.truncate_prompt_tokens or DEFAULT_PAIR_LENGTH
        return RerankRequest(
            query=queries,
            texts=documents,
            raw_scores=not (self.activation and self.use_activation),
            max_length=MAX_LENGTH if limit == -1 else min(MAX_LENGTH, max(MIN_PAIR_LENGTH, limit)),
            field="text_2",
        )

    def to_reply(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        """Return a `ScoreReply`, in the order of `text_2`."""
        results = sorted(reply["results"], key=lambda result: int(result["index"]))
        data = [
            {"index": r["index"], "object": "score", "score": r["relevance_score"]} for r in results
        ]
        fields = {"model": reply["model"], "usage": reply["usage"]}
        return {
            "id": f"score-{uuid.uuid4()}",
            "object": "list",
            "created": 0,
            "data": data,
            **fields,
        }


class Score(TypedDict):
    index: int
    object: Literal["score"]
    score: float


class ScoreReply(TypedDict):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: Usage


class TokenizeBody(ForeignBody):
    prompt: Annotated[str, Meta(examples=["море"])]
    model: str | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False

    def answer(self, service: Service) -> TokenizeReply:
        """Raises NotServedError for another model, TooLargeError for too many tokens."""
        model = service.model("embed")
        check_model(self.model, model, service.settings.embed_aliases)
        tokenizer = service.engine.tokenizer("embed")
        (tokens,) = tokenize_texts(
            tokenizer, [self.prompt], "prompt", add_special_tokens=self.add_special_tokens
        )
        return {
            "count": len(tokens),
            "max_model_len": model.max_length,
            "tokens": [token.id for token in tokens],
            "token_strs": [t.string for t in tokens] if self.return_token_strs else None,
        }


class TokenizeReply(TypedDict):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeBody(ForeignBody):
    tokens: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1, examples=[[0, 5, 2]])]
    model: str | None = None

    def answer(self, service: Service) -> DetokenizeReply:
        """Raises NotServedError: the body names another model."""
        model = service.model("embed")
        check_model(self.model, model, service.settings.embed_aliases)
        if max(self.tokens) >= model.vocab_size:
            raise ValidationError(
                f"`tokens` must be below {model.vocab_size}. Given: {max(self.tokens)}"
            )
        return {"prompt": service.engine.tokenizer("embed").decode(self.tokens)}


class DetokenizeReply(TypedDict):
    prompt: str


ROUTES = (
    Route(("/v1/score", "/score"), "text_1", OPENAI, "rerank", ScoreBody, ScoreReply),
    TextRoute(("/tokenize",), "prompt", OPENAI, TokenizeBody, TokenizeReply),
    TextRoute(("/detokenize",), "tokens", OPENAI, DetokenizeBody, DetokenizeReply),
)
