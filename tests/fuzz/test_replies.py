"""Fuzz server replies: the client returns a valid result or raises a `BGEError`."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from requests.structures import CaseInsensitiveDict

from bge_client import BGEError, EmbedResult, EndpointState, endpoint_state
from bge_client.chunking import Limits
from bge_client.codec import EmbedOptions, embed_result, ranked_documents, reply_metadata
from bge_client.errors import job_error
from bge_client.protocol import Response, _parse_job, job_output, parse_object, status_error
from bge_client.providers import openai_compatible
from fuzz.duration import fuzz_settings, rounds
from fuzz.mutation import mutated, mutated_bytes, odd_values

WIDTH, TEXTS = 4, ["море", "суша", "лес"]


def to_base64(*shape: int, dtype: str) -> str:
    return base64.b64encode(np.ones(shape, dtype).tobytes()).decode()


def valid_embedding(dtype: str) -> dict[str, Any]:
    vectors = [{"shape": [2, WIDTH], "data": to_base64(2, WIDTH, dtype=dtype)} for _ in TEXTS]
    return {
        "model": "m",
        "fingerprint": "f",
        "dimensions": WIDTH,
        "embeddings": [to_base64(WIDTH, dtype=dtype) for _ in TEXTS],
        "sparse_embeddings": [{"indices": [3, 7], "values": [0.5, 0.25]} for _ in TEXTS],
        "colbert_embeddings": vectors,
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
        "truncated": [1],
    }


RANKING = {
    "model": "m",
    "fingerprint": "f",
    "results": [{"index": index, "relevance_score": 0.5} for index in (1, 0, 2)],
    "usage": {"prompt_tokens": 9, "total_tokens": 9},
    "truncated": [1],
}


def parse_job(job: Any) -> dict[str, Any]:
    """Return the output of a job sent as JSON."""
    answer = Response(200, CaseInsensitiveDict(), json.dumps(job).encode())
    return job_output(_parse_job(answer, is_poll=False))


def jobs(reply: Any) -> st.SearchStrategy[Any]:
    return mutated({"id": "job-1", "status": "COMPLETED", "output": reply})


@fuzz_settings()
@given(st.data(), st.sampled_from(["float32", "float16"]), st.booleans(), st.booleans())
def check_embedding(data: st.DataObject, dtype: Any, sparse: bool, colbert: bool) -> None:
    job = data.draw(jobs(valid_embedding(dtype)))
    dense = not (sparse or colbert) or data.draw(st.booleans())
    options = EmbedOptions(dense, sparse, colbert, dtype=dtype)
    try:
        result = embed_result(parse_job(job), options, len(TEXTS))
    except BGEError:
        return
    check_vectors(result, options)


def check_vectors(result: EmbedResult, options: EmbedOptions) -> None:
    assert len(list(result)) == len(TEXTS)
    assert set(result.truncated) <= set(range(len(TEXTS)))
    assert all(type(count) is int for count in result.usage)
    if options.dense:
        assert result.dense is not None
        assert result.dense.shape[0] == len(TEXTS)
        assert result.dense.dtype == np.float32
        assert np.isfinite(result.dense).all()
    for indices, values in result.sparse or ():
        assert indices.shape == values.shape
        assert np.isfinite(values).all()
        assert (np.diff(indices.astype(np.int64)) > 0).all()
    for rows in result.colbert or ():
        assert rows.ndim == 2
        assert np.isfinite(rows).all()
    assert (result.sparse is not None, result.colbert is not None) == (
        options.sparse,
        options.colbert,
    )


@fuzz_settings()
@given(jobs(RANKING))
def check_ranking(job: Any) -> None:
    try:
        reply = parse_job(job)
        ranking = ranked_documents(reply, TEXTS, len(TEXTS))
        metadata = reply_metadata(reply, len(TEXTS))
    except BGEError:
        return
    assert sorted(document.index for document in ranking) == [0, 1, 2]
    assert all(type(document.relevance_score) is float for document in ranking)
    assert np.isfinite([document.relevance_score for document in ranking]).all()
    assert isinstance(metadata["fingerprint"], str)


@fuzz_settings()
@given(mutated_bytes(json.dumps(RANKING).encode()), st.integers(100, 599))
def check_body(body: bytes, status: int) -> None:
    answer = Response(status, CaseInsensitiveDict(), body)
    assert isinstance(status_error(answer), BGEError)
    with suppress(BGEError):
        assert isinstance(parse_object(answer), dict)


@fuzz_settings()
@given(odd_values, mutated({"workers": {"idle": 1, "throttled": 0}}), mutated(Limits().__dict__))
def check_errors_health_and_limits(error: Any, health: Any, limits: Any) -> None:
    assert isinstance(job_error(error, {}), BGEError)
    assert isinstance(job_error(f'{{"error_type": {json.dumps(error)}}}', {}), BGEError)
    assert Limits.of({"limits": limits}).max_texts > 0
    if isinstance(health, dict):
        with suppress(BGEError):
            assert endpoint_state(health) in EndpointState


@fuzz_settings()
@given(mutated({"data": [{"index": n, "embedding": [1.0, 2.0]} for n in range(3)], "usage": {}}))
def check_jina(reply: Any) -> None:
    try:
        body = json.dumps(reply).encode()
        parsed = parse_object(Response(200, CaseInsensitiveDict(), body))
        dense = openai_compatible.dense_of(parsed, len(TEXTS))
    except BGEError:
        return
    assert openai_compatible.usage_of(parsed).total_tokens is not None
    assert len(dense) == len(TEXTS)
    assert np.isfinite(dense).all()


def test_replies_with_vectors() -> None:
    for _ in rounds():
        check_embedding()


def test_replies_with_scores() -> None:
    for _ in rounds():
        check_ranking()


def test_bodies_of_any_bytes() -> None:
    for _ in rounds():
        check_body()


def test_errors_health_and_limits() -> None:
    for _ in rounds():
        check_errors_health_and_limits()


def test_replies_of_jina() -> None:
    for _ in rounds():
        check_jina()
