"""A client of any host with OpenAI's `/embeddings` and a `/rerank` like Jina's or Cohere's.

It sends only what both shapes of `/rerank` have: `model`, `query`, `documents`, `top_n`. Their
replies differ in where they count tokens: `usage`, `tokens` or `meta.tokens`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import requests

from ..codec import EmbedOptions, RerankOptions, checked_documents, checked_texts, ranked_documents
from ..deadline import Deadline
from ..endpoint import http_url
from ..errors import ConfigurationError, ProbeError, ProtocolError
from ..protocol import JSONObject, Request, request_json
from ..redaction import read_secret
from ..results import EmbedResult, Floats, RerankResult, Usage, merge
from ..transport import Transport
from . import DENSE, InputType, check_input_type
from .probe import Probe, ProbeCheck

log = logging.getLogger("bge_client")

NORM_TOLERANCE = 1e-3  # of a unit vector in float16


class OpenAICompatible:
    """Dense vectors and scores of a host. Each vector has length 1: others are normalised.

    `base` is the address above `/embeddings` and `/rerank`. A model that is None is not served.
    The fingerprint of the vectors is `name/embedding_model`; with a `probe` it is that of the
    probe's endpoint, once the vectors of the probe's texts have matched.

    Raises:
        ConfigurationError: an argument is invalid.
    """

    dense_only = True

    def __init__(
        self,
        name: str,
        base: str,
        api_key: str | None = None,
        *,
        embedding_model: str | None = None,
        rerank_model: str | None = None,
        max_texts: int = 128,
        timeout: float = 60.0,
        max_retries: float | None = None,
        session: requests.Session | None = None,
        probe: Probe | None = None,
    ) -> None:
        self.name = name
        key = read_secret(api_key, "api_key")
        self._transport = Transport(http_url(base, "base"), key, session)
        self._embedding_model, self._rerank_model = embedding_model, rerank_model
        self._max_texts = max_texts
        self._timeout, self._max_retries = Deadline(timeout).seconds, max_retries
        self._probe_check = None if probe is None else ProbeCheck(name, probe)
        self._has_logged_norm = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self._transport.url!r})"

    def close(self) -> None:
        self._transport.close()

    def is_healthy(self) -> bool:
        return True  # hosts have no common address to ask

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        input_type: InputType = "document",
        options: EmbedOptions = DENSE,
    ) -> EmbedResult:
        """Return dense vectors. Of the hosts here, Jina alone uses `input_type`.

        Raises:
            ConfigurationError: `options` has sparse or ColBERT vectors.
            BGEError: see `errors.py`.
        """
        check_input_type(input_type)
        if options.sparse or options.colbert:
            raise ConfigurationError(f"{self.name} has neither `sparse` nor `colbert` vectors")
        text_list = checked_texts(texts, "texts")
        result = self._embed_all(text_list, input_type)
        check = self._probe_check
        if check is None or self._mismatches(check):
            return result
        return replace(result, fingerprint=check.probe.fingerprint)

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
        model = self._required(self._rerank_model, "reranker")
        payload: JSONObject = {"model": model, "query": options.query, "documents": texts}
        if top_n is not None:
            payload["top_n"] = top_n
        reply = self._post("/rerank", payload | self._rerank_fields(), Deadline(self._timeout))
        return RerankResult(
            ranked_documents(reply, texts, min(top_n or len(texts), len(texts))),
            usage=usage_of(reply),
            truncated=[],  # not in the reply
            model=model,
            fingerprint=f"{self.name}/{model}",
            provider=self.name,
        )

    def check_fingerprint(self, expected: str) -> None:
        """Compare the vectors with the probe at first use, and once a day.

        Raises:
            ProbeError: they do not match, or there is no probe of `expected`.
            BGEError: the host did not answer.
        """
        if expected.startswith(f"{self.name}/"):
            return
        check = self._probe_check
        if check is None or check.probe.fingerprint != expected:
            raise ProbeError(
                f"vectors of {self.name} may be used as those of {expected} only with a probe of "
                f"that endpoint: `bge probe --save FILE`"
            )
        if reasons := self._mismatches(check):
            raise ProbeError(f"vectors of {self.name} do not match: {'; '.join(reasons)}")

    # ------------------------------------------------------------- what Jina does differently

    def _embed_fields(self, input_type: InputType) -> JSONObject:
        return {}

    def _rerank_fields(self) -> JSONObject:
        return {}

    def _fingerprint(self, model: str, dimensions: int) -> str:
        return f"{self.name}/{model}"

    # ---------------------------------------------------------------------------- requests

    def _mismatches(self, check: ProbeCheck) -> list[str]:
        """Return why the vectors do not match the probe; nothing if they match."""
        if check.is_due():  # perhaps in several threads: a lock would last as long as the request
            check.record(self._embed_all(check.probe.texts, "document"))
        return check.reasons

    def _embed_all(self, texts: list[str], input_type: InputType) -> EmbedResult:
        size, deadline = self._max_texts, Deadline(self._timeout)
        batches = (texts[i : i + size] for i in range(0, len(texts), size))
        return merge([self._embed(batch, input_type, deadline) for batch in batches])

    def _embed(self, batch: list[str], input_type: InputType, deadline: Deadline) -> EmbedResult:
        model = self._required(self._embedding_model, "embedding model")
        payload = {"model": model, "input": batch} | self._embed_fields(input_type)
        reply = self._post("/embeddings", payload, deadline)
        dense = self._normalised(dense_of(reply, len(batch)))
        return EmbedResult(
            dense=dense,
            sparse=None,
            colbert=None,
            truncated=[],  # not in the reply
            usage=usage_of(reply),
            model=model,
            fingerprint=self._fingerprint(model, dense.shape[1]),
            count=len(batch),
            provider=self.name,
        )

    def _post(self, path: str, payload: JSONObject, deadline: Deadline) -> JSONObject:
        request = Request("POST", path, json.dumps(payload, ensure_ascii=False).encode())
        exchange = request_json(deadline, request, self._max_retries)
        return self._transport.run(exchange, deadline)

    def _normalised(self, dense: Floats) -> Floats:
        """Return unit vectors [N, D]."""
        norms: Floats = np.linalg.norm(dense, axis=1, keepdims=True)
        if not (norms > 0).all():
            raise ProtocolError("the reply has a vector of length 0")
        if (abs(norms - 1) <= NORM_TOLERANCE).all():
            return dense
        if not self._has_logged_norm:
            self._has_logged_norm = True
            log.warning(
                "vectors of %s have length %.4g, not 1: they are normalised", self.name, norms[0, 0]
            )
        return dense / norms

    def _required(self, model: str | None, kind: str) -> str:
        if model is None:
            raise ConfigurationError(f"{self.name} has no {kind}")
        return model


def dense_of(reply: Mapping[str, Any], count: int) -> Floats:
    """Decode the vectors of `count` texts, float32 [count, D].

    Raises:
        ProtocolError: they are missing, of several sizes or not finite.
    """
    try:
        items = sorted(reply["data"], key=lambda item: int(item["index"]))
        if [item["index"] for item in items] != list(range(count)):
            raise ValueError("each index must occur once")
        with np.errstate(over="ignore"):  # 1e300 becomes infinite and is refused below
            dense = np.array([item["embedding"] for item in items], np.float32)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ProtocolError("the reply must hold vectors of one size") from None
    if dense.ndim != 2 or len(dense) != count or not np.isfinite(dense).all():
        raise ProtocolError(f"the reply must hold {count} finite vectors")
    return dense


def usage_of(reply: Mapping[str, Any]) -> Usage:
    """Return the tokens that a reply counts, 0 if it counts none."""
    meta = reply.get("meta")
    parts = [reply.get("usage"), reply.get("tokens")]
    parts.append(meta.get("tokens") if isinstance(meta, dict) else None)
    counts = [part for part in parts if isinstance(part, dict)]
    totals = [part.get(name) for part in counts for name in ("total_tokens", "input_tokens")]
    total = next((total for total in totals if type(total) is int), 0)
    return Usage(total, total)
