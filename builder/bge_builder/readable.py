"""A reply as text: the first numbers, the heaviest tokens as words, documents by score."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bge_worker.engine.engine import Engine

FIRST_NUMBERS = 5
HEAVIEST_TOKENS = 8
MAX_CHARACTERS = 70  # of a text
WIRE_TYPES = {
    "float32": "<f4",
    "float16": "<f2",
    "int8": "i1",
    "uint8": "u1",
    "binary": "i1",
    "ubinary": "u1",
}


def describe(payload: Mapping[str, Any], reply: Mapping[str, Any], engine: Engine) -> str:
    """Return the reply to a payload as lines. Replies of other kinds are returned as JSON."""
    if "results" in reply:
        lines = [*ranking(payload, reply)]
    elif "usage" in reply and "texts" in payload:
        lines = [*embeddings(payload, reply, engine)]
    else:
        return json.dumps(reply, ensure_ascii=False, indent=2)
    return "\n".join([f"{reply['model']}, fingerprint {reply['fingerprint']}", *lines, *end(reply)])


def ranking(payload: Mapping[str, Any], reply: Mapping[str, Any]) -> Iterator[str]:
    yield f"\nquery      {shortened(payload['query'])}"
    for result in reply["results"]:
        document = payload["documents"][result["index"]]
        text = document["text"] if isinstance(document, dict) else document
        yield f"  {result['relevance_score']:.4f}   {shortened(text)}"


def embeddings(
    payload: Mapping[str, Any], reply: Mapping[str, Any], engine: Engine
) -> Iterator[str]:
    texts = payload["texts"]
    for index, text in enumerate([texts] if isinstance(texts, str) else texts):
        yield f"\ntext {index}     {shortened(text)}"
        if "embeddings" in reply:
            numbers = first_numbers(reply["embeddings"][index], payload.get("dtype") or "float32")
            yield f"  dense    {reply['dimensions']} dimensions: {numbers}, …"
        if "sparse_embeddings" in reply:
            yield f"  sparse   {heaviest_tokens(reply['sparse_embeddings'][index], engine)}"
        if "colbert_embeddings" in reply:
            vectors, width = shape(reply["colbert_embeddings"][index])
            yield f"  colbert  {vectors} vectors of {width} numbers"


def first_numbers(vector: list[float] | str, dtype: str) -> str:
    if isinstance(vector, str):
        vector = np.frombuffer(base64.b64decode(vector), WIRE_TYPES[dtype]).tolist()
    return ", ".join(f"{number:.4g}" for number in vector[:FIRST_NUMBERS])


def heaviest_tokens(sparse: Mapping[str, Any], engine: Engine) -> str:
    """Name the tokens, which `indices` identify in the model's vocabulary."""
    weights = sorted(zip(sparse["values"], sparse["indices"], strict=True), reverse=True)
    strings = engine.tokenizer("embed").token_strings([index for _, index in weights])
    # "▁" starts a word; any other token continues one.
    words = [(s[1:] or s) if s.startswith("▁") else f"…{s}" for s in strings]
    named = [f"{word} {weight:.3f}" for word, (weight, _) in zip(words, weights, strict=True)]
    return f"{len(weights)} tokens: {', '.join(named[:HEAVIEST_TOKENS])}"


def shape(colbert: list[list[float]] | Mapping[str, Any]) -> list[int]:
    if isinstance(colbert, Mapping):
        return list(colbert["shape"])
    return [len(colbert), len(colbert[0])]


def end(reply: Mapping[str, Any]) -> Iterator[str]:
    if reply["truncated"]:
        yield f"\ntruncated  {', '.join(map(str, reply['truncated']))}"
    timings = reply["timings_ms"]
    yield (
        f"\n{reply['usage']['total_tokens']} tokens; {timings['queue']:.1f} ms in the queue, "
        f"{timings['tokenize']:.1f} ms to tokenize, {timings['inference']:.1f} ms to compute"
    )


def shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_CHARACTERS else line[: MAX_CHARACTERS - 1] + "…"
