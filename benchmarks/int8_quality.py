"""What int8 loses: the outputs of each int8 contestant against ours in fp32, on the same weights.

Weights are random (`small`, `full`), or those of a trained encoder (`minilm`), whose sparse weights
and scores mean nothing and are omitted. The numbers are of

    cosine      each text's dense vector with the one in fp32
    top 10      the ten nearest other texts of each: the share that fp32 has too
    sparse      weights of tokens: the difference; of the peers, none has them
    logit       scores of pairs: the difference
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compare import Process, is_available
from contestants import CONTESTANTS, OURS, OURS_INT8, is_int8
from peers import Packed, PackedInt8
from results import options, report, with_date
from workload import BENCH, SHAPES, TRAINED, corpus, mixed_texts, prepare

Array = npt.NDArray[np.float32]
NEIGHBOURS = 10
TEXTS, PAIRS = 2000, 200  # of which the first have sparse weights too


def measure(shape: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each contestant's entry as soon as it is measured."""
    models = BENCH / shape
    prepare(shape, models)
    texts = natural_texts() if shape == TRAINED else mixed_texts(TEXTS, median=12)
    exact = outputs(OURS, shape, texts)
    for name in CONTESTANTS:
        if is_int8(name) and is_available(name):
            entry = losses(exact, outputs(name, shape, texts))
            if name == OURS_INT8 and shape != TRAINED:
                entry |= sparse_losses(models, texts[:PAIRS])
            yield "int8 quality", {shape: {name: with_date(entry)}}


def natural_texts() -> list[str]:
    """Return the shipped texts and their sentences."""
    sentences = [part for text in corpus() for part in re.split(r"(?<=[.!?]) ", text)]
    return [*corpus(), *sentences]


def outputs(name: str, shape: str, texts: list[str]) -> dict[str, Array]:
    """Return dense vectors [N, D] and, of random weights, logits of the first text with others."""
    tasks = {"dense": {"texts": texts}}
    if shape != TRAINED:
        tasks["rerank"] = {"query": texts[0], "texts": texts[1 : PAIRS + 1]}
    results = {}
    for kind, task in tasks.items():
        with Process(name, BENCH / shape) as process:
            answer = process.send({"kind": kind, "repeat": 1, "rows": len(texts), **task})
            results[kind] = np.array(answer["rows"], np.float32)
    return results


def losses(exact: dict[str, Array], approximate: dict[str, Array]) -> dict[str, float]:
    a, b = exact["dense"], approximate["dense"]
    cosines = np.einsum("nd,nd->n", a, b)
    entry = {
        "cosine_mean": round(float(cosines.mean()), 5),
        "cosine_min": round(float(cosines.min()), 5),
        "top_10": round(kept_neighbours(a @ a.T, b @ b.T), 4),
    }
    if "rerank" in exact:
        entry |= differences("logit", exact["rerank"] - approximate["rerank"])
    return entry


def sparse_losses(models: Path, texts: list[str]) -> dict[str, float]:
    """Differences of the weights of all tokens that either has."""
    exact, approximate = (
        [result.sparse for result in packed(models).outputs(texts)]
        for packed in (Packed, PackedInt8)
    )
    gaps = []
    for a, b in zip(exact, approximate, strict=True):
        weights = dict(zip(a.indices, a.values, strict=True))
        for index, value in zip(b.indices, b.values, strict=True):
            weights[index] = weights.get(index, 0.0) - value
        gaps += weights.values()
    return differences("sparse", np.array(gaps))


def differences(name: str, gaps: Array) -> dict[str, float]:
    sizes = np.abs(gaps)
    return {
        f"{name}_mean": float(f"{sizes.mean():.2g}"),
        f"{name}_max": float(f"{sizes.max():.2g}"),
    }


def kept_neighbours(exact: Array, approximate: Array) -> float:
    """Return the share of each text's nearest others that stay, for similarities [N, N]."""
    pairs = zip(nearest(exact), nearest(approximate), strict=True)
    return float(np.mean([len(a & b) for a, b in pairs])) / NEIGHBOURS


def nearest(similarities: Array) -> list[set[int]]:
    """Return the nearest other texts of each, for similarities [N, N]."""
    similarities = similarities.copy()
    np.fill_diagonal(similarities, -np.inf)
    return [set(line) for line in np.argsort(-similarities, axis=1)[:, :NEIGHBOURS].tolist()]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("shapes", nargs="+", choices=[*SHAPES, TRAINED])
    args = parser.parse_args()
    report((entry for shape in args.shapes for entry in measure(shape)), save=args.save)


if __name__ == "__main__":
    main()
