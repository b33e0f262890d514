"""A client of Jina's API with the methods of `Client`: the router's second provider.

https://api.jina.ai/redoc: `POST /v1/embeddings`, `POST /v1/rerank`; errors are `{"detail": …}`.
Dense vectors only: Jina has no sparse vectors, and ColBERT vectors only from a separate model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import requests

from .codec import RerankOptions, checked_documents, checked_texts, ranked_documents
from .deadline import Deadline
from .endpoint import base_url
from .errors import ConfigurationError, ProtocolError
from .protocol import JSONObject, Request, request_json
from .redaction import read_secret
from .results import EmbedResult, Floats, RerankResult, Usage, merge
from .transport import Transport

BASE_URL = "https://api.jina.ai"
BATCH_SIZE = 128  # texts in one request
TASKS = {"query": "retrieval.query", "document": "retrieval.passage"}
InputType = Literal["query", "document"]


class JinaClient:
    """Jina's hosted embeddings and reranker.

    Raises:
        ConfigurationError: an argument is invalid.
    """

    def __init__(
        self,
        api_key: str,
        *,
        base: str = BASE_URL,
        embedding_model: str = "jina-embeddings-v3",
        rerank_model: str = "jina-reranker-v2-base-multilingual",
        timeout: float = 60.0,
        session: requests.Session | None = None,
    ) -> None:
        key = read_secret(api_key, "JINA_API_KEY")
        if key is None:
            raise ConfigurationError("set `JINA_API_KEY` to use Jina")
        self._transport = Transport(base_url(base), key, session)
        self._embedding_model = embedding_model
        self._rerank_model = rerank_model
        self._timeout = timeout

    def close(self) -> None:
        self._transport.close()

    def embed(
        self, texts: str | Iterable[str], *, input_type: InputType = "document"
    ) -> EmbedResult:
        """Return dense vectors. Jina embeds queries and documents differently.

        Raises:
            BGEError: see `errors.py`.
        """
        text_list, task = checked_texts(texts, "texts"), task_of(input_type)
        batches = [text_list[i : i + BATCH_SIZE] for i in range(0, len(text_list), BATCH_SIZE)]
        deadline = Deadline(self._timeout)
        return merge([self._embed(deadline, batch, task) for batch in batches])

    def rerank(
        self,
        query: str,
        documents: Iterable[str | Mapping[str, object]],
        *,
        top_n: int | None = None,
    ) -> RerankResult:
        """Return the documents, best first. A document is a string, or an object with a `text`.

        Raises:
            BGEError: see `errors.py`.
        """
        options, texts = RerankOptions(query, top_n), checked_documents(documents)
        payload: dict[str, Any] = {
            "model": self._rerank_model,
            "query": options.query,
            "documents": texts,
            "return_documents": False,
        }
        if top_n is not None:
            payload["top_n"] = top_n
        reply = self._post(Deadline(self._timeout), "/v1/rerank", payload)
        return RerankResult(
            ranked_documents(reply, texts, min(top_n or len(texts), len(texts))),
            usage=_usage(reply),
            truncated=[],  # not in the reply
            model=self._rerank_model,
            fingerprint=f"jina/{self._rerank_model}",
            provider="jina",
        )

    def _embed(self, deadline: Deadline, batch: list[str], task: str) -> EmbedResult:
        payload = {
            "model": self._embedding_model,
            "task": task,
            "truncate": True,
            "input": batch,
        }
        reply = self._post(deadline, "/v1/embeddings", payload)
        dense = _dense(reply, len(batch))
        return EmbedResult(
            dense=dense,
            sparse=None,
            colbert=None,
            truncated=[],
            usage=_usage(reply),
            model=self._embedding_model,
            fingerprint=f"jina/{self._embedding_model}/{dense.shape[1]}",
            count=len(batch),
            provider="jina",
        )

    def _post(self, deadline: Deadline, path: str, payload: JSONObject) -> JSONObject:
        request = Request("POST", path, json.dumps(payload, ensure_ascii=False).encode())
        return self._transport.run(request_json(deadline, request), deadline)


def task_of(input_type: InputType) -> str:
    """Return Jina's name of a kind of texts. Raises ConfigurationError if it is invalid."""
    if input_type not in TASKS:
        kinds = " or ".join(TASKS)
        raise ConfigurationError(f"`input_type` must be {kinds}. Given: {input_type!r}")
    return TASKS[input_type]


def _dense(reply: dict[str, Any], count: int) -> Floats:
    try:
        items = sorted(reply["data"], key=lambda item: int(item["index"]))
        if [item["index"] for item in items] != list(range(count)):
            raise ValueError("each index must occur once")
        with np.errstate(over="ignore"):  # 1e300 becomes infinite and is refused below
            dense = np.array([item["embedding"] for item in items], np.float32)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ProtocolError("Jina's reply must hold vectors of one size") from None
    if dense.ndim != 2 or len(dense) != count or not np.isfinite(dense).all():
        raise ProtocolError(f"Jina's reply must hold {count} finite vectors")
    return dense


def _usage(reply: dict[str, Any]) -> Usage:
    usage = reply.get("usage")
    total = usage.get("total_tokens", 0) if isinstance(usage, dict) else 0
    return Usage(total, total) if type(total) is int else Usage()
