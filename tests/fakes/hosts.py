"""Stand-ins of hosted providers, strict after their documentation: paths, keys, fields, limits.

with Host("novita", embed=vectors_of) as host:
    OpenAICompatible("novita", host.base, host.key, embedding_model=host.model)

A field, a model or a number of texts that the documentation does not allow is refused as the
provider refuses it. What it computes is up to the test: `embed` and `score` are functions.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np

from fakes.loopback import LoopbackServer

Vectors = np.ndarray[Any, Any]
Embed = Callable[[list[str]], Vectors]
Score = Callable[[str, list[str]], Sequence[float]]
KEY = "a-key-of-a-host"
OPENAI_FIELDS = frozenset({"model", "input", "encoding_format", "dimensions", "user"})
RERANK_FIELDS = frozenset({"model", "query", "documents", "top_n"})  # of all


@dataclass(frozen=True)
class Shape:
    """What a provider documents. `prefix` is the part of the base address after the host."""

    prefix: str
    model: str = "BAAI/bge-m3"
    rerank_model: str | None = None
    embed_fields: frozenset[str] = OPENAI_FIELDS
    rerank_fields: frozenset[str] = RERANK_FIELDS
    max_texts: int = 2048
    has_key: bool = True
    error: Callable[[int, str], object] = lambda _, text: {"error": {"message": text}}
    counts: Callable[[int], dict[str, Any]] = lambda tokens: {
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens}
    }
    has_documents: bool = False  # in the results of /rerank


SHAPES = {
    # https://deepinfra.com/BAAI/bge-m3/api
    "deepinfra": Shape("/v1/openai", max_texts=1024),
    # https://novita.ai/docs/api-reference/model-apis-llm-create-rerank and …-create-embeddings
    "novita": Shape(
        "/openai/v1",
        "baai/bge-m3",
        "baai/bge-reranker-v2-m3",
        embed_fields=frozenset({"model", "input", "encoding_format"}),
        error=lambda code, text: {"code": code, "reason": "BAD", "message": text, "metadata": {}},
        has_documents=True,
    ),
    # https://docs.siliconflow.com/en/api-reference/rerank/create-rerank and …/create-embeddings
    "siliconflow": Shape(
        "/v1",
        rerank_model="BAAI/bge-reranker-v2-m3",
        embed_fields=frozenset({"model", "input", "encoding_format", "dimensions"}),
        rerank_fields=RERANK_FIELDS
        | {"instruction", "return_documents", "max_chunks_per_doc", "overlap_tokens"},
        max_texts=32,
        error=lambda code, text: {"code": 20000 + code, "message": text, "data": None},
        counts=lambda tokens: {"tokens": {"input_tokens": tokens, "output_tokens": 0}},
    ),
    # https://developers.cloudflare.com/workers-ai/configuration/open-ai-compatibility
    "cloudflare": Shape(
        "/client/v4/accounts/an-account/ai/v1",
        "@cf/baai/bge-m3",
        max_texts=100,
        error=lambda code, text: {"success": False, "errors": [{"code": code, "message": text}]},
    ),
    # https://huggingface.github.io/text-embeddings-inference
    "tei": Shape(
        "/v1",
        max_texts=32,
        has_key=False,
        error=lambda code, text: {"error": text, "error_type": "Validation"},
    ),
    # https://michaelfeil.eu/infinity: /docs of the server
    "infinity": Shape(
        "",
        rerank_model="BAAI/bge-reranker-v2-m3",
        embed_fields=OPENAI_FIELDS | {"modality"},
        rerank_fields=RERANK_FIELDS | {"return_documents", "raw_scores"},
        has_key=False,
    ),
    # https://docs.vllm.ai/en/latest/serving/openai_compatible_server
    "vllm": Shape(
        "/v1",
        rerank_model="BAAI/bge-reranker-v2-m3",
        embed_fields=OPENAI_FIELDS | {"truncate_prompt_tokens", "priority", "request_id"},
        rerank_fields=RERANK_FIELDS | {"truncate_prompt_tokens", "priority", "request_id"},
        has_key=False,
        has_documents=True,
    ),
    # https://docs.cohere.com/reference/rerank, behind any base address
    "openai_compatible": Shape(
        "/v2",
        "bge-m3",
        "rerank-v3.5",
        rerank_fields=RERANK_FIELDS | {"max_tokens_per_doc", "priority"},
        counts=lambda tokens: {
            "meta": {
                "api_version": {"version": "2"},
                "billed_units": {"search_units": 1},
                "tokens": {"input_tokens": tokens, "output_tokens": 0},
            }
        },
    ),
}


@dataclass
class Host:
    """A provider on loopback. `requests` are the bodies it has accepted.

    `failure` is the status of all further replies.
    """

    name: str
    embed: Embed = lambda texts: np.eye(len(texts), 8)
    score: Score = lambda query, documents: [1 / (1 + len(text)) for text in documents]
    failure: int | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shape = SHAPES[self.name]
        self.key = KEY if self.shape.has_key else None
        self.model, self.rerank_model = self.shape.model, self.shape.rerank_model
        self._lock = threading.Lock()
        host = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                status, reply = host.answer(self.path, dict(self.headers), raw)
                body = json.dumps(reply, allow_nan=False).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = LoopbackServer(Handler)

    def __enter__(self) -> Host:
        self._server.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.__exit__(*error)

    @property
    def base(self) -> str:
        return self._server.base + self.shape.prefix

    @property
    def env(self) -> dict[str, str]:
        """The variables with which a router finds this host."""
        prefix = self.name.upper()
        env = {f"{prefix}_BASE_URL": self.base, f"{prefix}_EMBEDDING_MODEL": self.model}
        if self.rerank_model is not None:
            env[f"{prefix}_RERANK_MODEL"] = self.rerank_model
        return env | ({f"{prefix}_API_KEY": self.key} if self.key else {})

    def answer(self, path: str, headers: dict[str, str], raw: bytes) -> tuple[int, object]:
        shape, prefix = self.shape, self.shape.prefix
        if self.failure is not None:
            return self.failure, shape.error(self.failure, "unavailable")
        if shape.has_key and headers.get("Authorization") != f"Bearer {self.key}":
            return 401, shape.error(401, "the key is not accepted")
        if headers.get("Content-Type") != "application/json":
            return 415, shape.error(415, "the body must be JSON")
        body = json.loads(raw)
        if path == f"{prefix}/embeddings":
            fault = self._fault(body, shape.embed_fields, "input", shape.model, shape.max_texts)
            reply = None if fault else self._embeddings(body)
        elif path == f"{prefix}/rerank" and shape.rerank_model is not None:
            fault = self._fault(body, shape.rerank_fields, "documents", shape.rerank_model, 1000)
            reply = None if fault else self._ranking(body)
        else:
            return 404, shape.error(404, "not found")
        if fault:
            return 400, shape.error(400, fault)
        with self._lock:
            self.requests.append(body)
        return 200, reply

    def _fault(
        self,
        body: dict[str, Any],
        fields: frozenset[str],
        texts_field: str,
        model: str,
        max_texts: int,
    ) -> str | None:
        if unknown := body.keys() - fields:
            return f"unknown fields: {', '.join(sorted(unknown))}"
        if body.get("model") != model:
            return "no such model"
        texts = body.get(texts_field)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            return f"`{texts_field}` must be strings"
        return f"more than {max_texts} texts" if len(texts) > max_texts else None

    def _embeddings(self, body: dict[str, Any]) -> dict[str, Any]:
        vectors = self.embed(body["input"])
        data = [
            {"object": "embedding", "index": index, "embedding": vector.tolist()}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": len(data), "total_tokens": len(data)}
        return {"object": "list", "data": data, "model": body["model"], "usage": usage}

    def _ranking(self, body: dict[str, Any]) -> dict[str, Any]:
        documents = body["documents"]
        scores = self.score(body["query"], documents)
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        results: list[dict[str, Any]] = [
            {"index": index, "relevance_score": float(scores[index])}
            for index in order[: body.get("top_n")]
        ]
        if self.shape.has_documents:
            results = [r | {"document": {"text": documents[r["index"]]}} for r in results]
        return {"id": "some-id", "results": results} | self.shape.counts(len(documents))
