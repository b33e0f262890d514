"""What Qdrant's quantization loses: the first ten results against those of the original vectors.

Measured in Qdrant's own engine, as one shard in this process, without a graph. Dense vectors are
those of the sentences of the shipped corpora, ColBERT vectors those of their passages. Of two
models: the miniature, and all-MiniLM-L6-v2, a trained checkpoint of another model that a package
ships. Neither is bge-m3: the last word has `bge evaluate` on one's own queries.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge
from sentence_transformers import SentenceTransformer

from bge_worker.engine.engine import load_engine
from bge_worker.engine.outputs import Outputs
from bge_worker.settings import Settings
from workload import MINIATURE, ROOT, corpus

COURSE = ROOT / "retrieval" / "examples" / "course"
FIRST = 10  # results that are compared
# The limit of a request, and its oversampling; None without rescoring. The last is that of a plan's
# candidates by default.
REQUESTS = ((10, None), (10, 2.0), (10, 4.0), (100, None), (100, 2.0))
QUANTIZATIONS = {
    "scalar": edge.ScalarQuantizationConfig(edge.ScalarType.Int8, always_ram=True),
    "binary": edge.BinaryQuantizationConfig(always_ram=True),
}
BYTES = {"scalar": 1, "binary": 1 / 8}  # a dimension
Vectors = Sequence[Any]  # [D] of a text, or [tokens, D]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minilm", type=Path, help="folder of all-MiniLM-L6-v2")
    args = parser.parse_args()
    passages = [*read_texts(COURSE / "corpus.jsonl"), *corpus()]
    sentences = [part for text in passages for part in re.split(r"(?<=[.!?])\s+", text) if part]
    queries = read_texts(COURSE / "queries.jsonl")
    minilm = SentenceTransformer(str(args.minilm))
    heads = [f"{limit}, ×{factor:g}" if factor else f"{limit}" for limit, factor in REQUESTS]
    print("| vectors | copies | bytes of a vector |", " | ".join(heads), "|")
    print("|", " | ".join(["---"] * (3 + len(heads))), "|")
    show("miniature, dense", miniature("dense", sentences), miniature("dense", queries))
    show("all-MiniLM-L6-v2, dense", minilm.encode(sentences), minilm.encode(queries))
    show("miniature, ColBERT", miniature("colbert", passages), miniature("colbert", queries))


def read_texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]


def miniature(name: str, texts: Sequence[str]) -> list[Any]:
    settings = Settings(embed_model=MINIATURE / "bge-m3", rerank_model=None, device="cpu")
    engine = load_engine(settings)
    outputs = Outputs.DENSE if name == "dense" else Outputs.COLBERT
    results: list[Any] = []
    for start in range(0, len(texts), 32):
        results += engine.run(outputs, engine.encode_texts([*texts[start : start + 32]], 512))
    return [getattr(result, name) for result in results]


def show(name: str, documents: Vectors, queries: Vectors) -> None:
    """Print a row for each quantization: the share of the first ten results that stay."""
    dimensions = np.shape(documents[0])[-1]
    for quantization, config in QUANTIZATIONS.items():
        with shard(documents, config) as engine:
            exact = first(engine, queries, FIRST, edge.QuantizationSearchParams(ignore=True))
            shares = [agreement(engine, queries, exact, *request) for request in REQUESTS]
        cells = " | ".join(f"{share:.1%}" for share in shares)
        size = f"{4 * dimensions} → {dimensions * BYTES[quantization]:g}"
        print(f"| {name} | {quantization} | {size} | {cells} |", flush=True)


def agreement(
    engine: Any, queries: Vectors, exact: Sequence[set[int]], limit: int, factor: float | None
) -> float:
    """Return the share of the first results of the original vectors that are among the first."""
    params = edge.QuantizationSearchParams(rescore=factor is not None, oversampling=factor)
    approximate = first(engine, queries, limit, params)
    return float(np.mean([len(a & b) for a, b in zip(exact, approximate, strict=True)])) / FIRST


def first(engine: Any, queries: Vectors, limit: int, params: Any) -> list[set[int]]:
    """Return the first `FIRST` of `limit` results of each query."""
    results = []
    for query in queries:
        request = edge.QueryRequest(
            limit=limit,
            query=edge.Query.Nearest(np.asarray(query).tolist(), using="v"),
            params=edge.SearchParams(quantization=params),
        )
        results.append({point.id for point in engine.query(request)[:FIRST]})
    return results


@contextmanager
def shard(documents: Vectors, quantization: Any) -> Iterator[Any]:
    """A shard with the vectors and their quantized copies."""
    is_multi = np.ndim(documents[0]) == 2
    max_sim = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
    params = edge.EdgeVectorParams(
        np.shape(documents[0])[-1],
        edge.Distance.Cosine,
        multivector_config=max_sim if is_multi else None,
        hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=8, full_scan_threshold=10),
        quantization_config=quantization,
    )
    config = edge.EdgeConfig(
        vectors={"v": params}, optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1)
    )
    with tempfile.TemporaryDirectory() as folder:
        engine = edge.EdgeShard.create(folder, config)
        points = [edge.Point(n, {"v": np.asarray(v).tolist()}, {}) for n, v in enumerate(documents)]
        engine.update(edge.UpdateOperation.upsert_points(points))
        engine.optimize()
        yield engine
        engine.close()


if __name__ == "__main__":
    main()
