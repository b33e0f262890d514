"""Jina's hosted embeddings and reranker: https://api.jina.ai/redoc.

Dense vectors only: Jina has no sparse vectors, and ColBERT vectors only from a separate model. They
live in a space of their own, whose dimensions the caller may choose.
"""

from __future__ import annotations

import requests

from ..endpoint import base_url
from ..errors import ConfigurationError, ProbeError
from ..protocol import JSONObject
from ..redaction import read_secret
from . import InputType
from .openai_compatible import OpenAICompatible

BASE_URL = "https://api.jina.ai"
BATCH_SIZE = 128  # texts in one request
TASKS = {"query": "retrieval.query", "document": "retrieval.passage"}


class JinaClient(OpenAICompatible):
    """Jina's models. It embeds queries and documents differently.

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
        max_retries: float | None = None,
        session: requests.Session | None = None,
    ) -> None:
        key = read_secret(api_key, "JINA_API_KEY")
        if key is None:
            raise ConfigurationError("set `JINA_API_KEY` to use Jina")
        super().__init__(
            "jina",
            f"{base_url(base)}/v1",
            key,
            embedding_model=embedding_model,
            rerank_model=rerank_model,
            max_texts=BATCH_SIZE,
            timeout=timeout,
            max_retries=max_retries,
            session=session,
        )

    def check_fingerprint(self, expected: str) -> None:
        """Raises ProbeError if `expected` is no fingerprint of Jina's: a probe would not match."""
        if not expected.startswith("jina/"):
            raise ProbeError(f"Jina's vectors are of another space than those of {expected}")

    def _embed_fields(self, input_type: InputType) -> JSONObject:
        return {"task": TASKS[input_type], "truncate": True}

    def _rerank_fields(self) -> JSONObject:
        return {"return_documents": False}

    def _fingerprint(self, model: str, dimensions: int) -> str:
        return f"jina/{model}/{dimensions}"
