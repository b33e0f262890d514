"""`make run`: the real handler in the SDK's local harness, and the reply as text."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bge_builder.readable import describe
from bge_builder.run import read_job
from bge_worker.engine.engine import PackedEngine
from bge_worker.serving.payload import answer_payload
from bge_worker.serving.service import Service
from bge_worker.settings import EngineName, Settings
from conftest import MODELS, ROOT

TEXTS = ["Sparse retrieval weighs each token.", "море"]


@pytest.fixture
def run(runtimes: Callable[[EngineName], Path]) -> Callable[..., Any]:
    folder = runtimes("packed")
    variables = {
        "BGE_DEVICE": "cpu",
        "BGE_EMBED_MODEL": str(folder / MODELS[0]),
        "BGE_RERANK_MODEL": str(folder / MODELS[1]),
    }

    def command(*arguments: str) -> Any:
        return subprocess.run(
            [sys.executable, "-m", "bge_builder.run", *arguments],
            cwd=ROOT,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return command


def test_the_reply_is_readable_and_progress_is_on_stderr(run: Callable[..., Any]) -> None:
    ended = run()  # test_input.json
    assert ended.returncode == 0, ended.stderr
    assert "dense    512 dimensions: " in ended.stdout
    assert "sparse 0." in ended.stdout
    steps = [line.split(" …")[0] for line in ended.stderr.splitlines()]
    assert steps == ["loading PyTorch and the models", "answering, in RunPod's local harness"]


def test_the_full_reply_is_json_and_nothing_else(run: Callable[..., Any]) -> None:
    reply = json.loads(run("--full", "--input", json.dumps({"texts": TEXTS * 50})).stdout)
    assert len(reply["embeddings"]) == 100  # far more than the SDK's harness prints


def test_an_error_of_the_worker_is_one_sentence(run: Callable[..., Any]) -> None:
    ended = run("--input", '{"texts": [" "]}')
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.splitlines()[-1].startswith("error: ValidationError: `texts[0]` must not")


@pytest.mark.parametrize("text", ["no JSON", "[1]", "[" * 100_000])
def test_input_that_is_no_object_is_one_sentence(run: Callable[..., Any], text: str) -> None:
    ended = run("--input", text)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: `INPUT` ")
    assert ended.stderr.count("\n") == 1


def test_a_payload_without_input_is_wrapped() -> None:
    job = {"input": {"texts": "море"}}
    assert read_job("INPUT", json.dumps(job["input"])) == read_job("INPUT", json.dumps(job)) == job


def described(packed: PackedEngine, payload: dict[str, Any]) -> str:
    service = Service(packed, Settings())
    try:
        reply = asyncio.run(answer_payload(service, payload))
    finally:
        service.close(timeout=10)
    return describe(payload, reply.body, packed)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "binary", "ubinary"])
def test_both_encodings_read_the_same(packed: PackedEngine, dtype: str) -> None:
    payload = {"texts": TEXTS, "return_sparse": True, "return_colbert": True, "dtype": dtype}
    text, timings = described(packed, payload).rsplit("\n", 1)
    assert described(packed, payload | {"encoding_format": "base64"}).startswith(text)
    assert "vectors of " in text
    assert " ms to compute" in timings


def test_documents_are_shown_by_score(packed: PackedEngine) -> None:
    payload = {"query": "море", "documents": ["о суше", {"text": "о море"}]}
    assert "о море" in described(packed, payload).splitlines()[3]


def test_a_reply_of_another_kind_is_shown_as_json(packed: PackedEngine) -> None:
    assert '"models": {' in described(packed, {"info": True})
