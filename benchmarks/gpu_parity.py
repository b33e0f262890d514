"""Our engine and FlagEmbedding, in fp16 and fp32, against FlagEmbedding in fp32 on this device.

FlagEmbedding's own fp16 shows how far half precision alone is from fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bge_worker.engine.engine import PackedEngine
from bge_worker.engine.outputs import Outputs
from bge_worker.engine.reference import restore_prepare_for_model
from workload import MODELS, mixed_texts, texts_of_length

QUERY = "как найти минимум функции"
ALL = Outputs.DENSE | Outputs.SPARSE | Outputs.COLBERT
Sparse = dict[int, float]


class Vectors(NamedTuple):
    """The outputs of N texts, and the logits of a query with each."""

    dense: np.ndarray  # [N, D]
    sparse: list[Sparse]
    colbert: list[np.ndarray]  # [tokens - 1, D] each
    logits: np.ndarray  # [N]


def compare_with_reference(
    models: Path, open_engine: Callable[[Any], PackedEngine]
) -> dict[str, Any]:
    """Return the differences of each engine and precision from FlagEmbedding in fp32."""
    is_gpu = torch.cuda.is_available()
    texts = mixed_texts(48) + (texts_of_length(2, 2048) if is_gpu else [])
    reference = reference_vectors(models, texts, fp16=False)
    results: dict[str, Any] = {}
    for dtype in ("float32", "float16"):
        if dtype == "float16" and is_gpu:
            fp16 = reference_vectors(models, texts, fp16=True)
            results["FlagEmbedding, float16"] = differences(fp16, reference)
        engine = open_engine(dtype)
        results[f"ours, {dtype}"] = differences(own_vectors(engine, texts), reference)
    if is_gpu:  # products summed in fp32 throughout, where the default may sum in fp16
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        results["ours, float16, full-precision sums"] = differences(
            own_vectors(engine, texts), reference
        )
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True
    return results


def own_vectors(engine: PackedEngine, texts: Sequence[str]) -> Vectors:
    results: list[Any] = []
    for text in texts:  # alone: the same micro-batches for every precision
        results += engine.run(ALL, engine.encode_texts([text], max_length=8192))
    scores = engine.run(Outputs.RELEVANCE, engine.encode_pairs([QUERY], texts, 1024))
    return Vectors(
        np.stack([result.dense for result in results]),
        [dict(zip(*result.sparse, strict=True)) for result in results],
        [result.colbert for result in results],
        np.array(scores, np.float32),
    )


def reference_vectors(models: Path, texts: Sequence[str], *, fp16: bool) -> Vectors:
    from FlagEmbedding import BGEM3FlagModel, FlagReranker

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {"use_fp16": fp16, "devices": device}
    embedder = BGEM3FlagModel(str(models / "hub" / MODELS[0]), **options)
    output = embedder.encode(
        list(texts), batch_size=8, max_length=8192, return_sparse=True, return_colbert_vecs=True
    )
    reranker = FlagReranker(str(models / "hub" / MODELS[1]), max_length=1024, **options)
    restore_prepare_for_model(reranker.tokenizer)
    scores = reranker.compute_score([(QUERY, text) for text in texts], batch_size=8)
    return Vectors(
        np.asarray(output["dense_vecs"], np.float32),
        [{int(k): float(v) for k, v in row.items()} for row in output["lexical_weights"]],
        [np.asarray(rows, np.float32) for rows in output["colbert_vecs"]],
        np.asarray(scores, np.float32),
    )


def differences(vectors: Vectors, reference: Vectors) -> dict[str, float]:
    """Return the smallest cosines, and the largest differences of weights and logits."""
    colbert = [
        float((ours * theirs).sum(1).min())
        for ours, theirs in zip(vectors.colbert, reference.colbert, strict=True)
    ]
    sparse = [
        abs(ours.get(token, 0.0) - theirs.get(token, 0.0))
        for ours, theirs in zip(vectors.sparse, reference.sparse, strict=True)
        for token in ours.keys() | theirs.keys()
    ]
    return {
        "dense_cosine": round(float((vectors.dense * reference.dense).sum(1).min()), 7),
        "colbert_cosine": round(min(colbert), 7),
        "sparse_weight": float(f"{max(sparse):.2e}"),
        "logit": float(f"{np.abs(vectors.logits - reference.logits).max():.2e}"),
    }
