"""What int8 and binary vectors lose: cosines and neighbours, against the fp32 vectors.

Of two models: random weights of bge-m3's width, and all-MiniLM-L6-v2, a trained checkpoint of
another model that a package ships. Neither is bge-m3: they bound what to expect, and the last word
has an evaluation on one's own judged queries.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from bge_builder.convert import convert
from bge_worker.engine.engine import load_engine
from bge_worker.engine.outputs import Outputs
from bge_worker.serving.requests import Dtype
from bge_worker.serving.vectors import quantize
from bge_worker.settings import Settings
from checkpoints import Shape, write_pair
from int8_quality import Array, kept_neighbours
from workload import corpus, mixed_texts

DTYPES: tuple[Dtype, ...] = ("int8", "binary")  # uint8 and ubinary are these, shifted by 128
SHAPE = Shape(width=1024, heads=16, feed_forward=4096, layers=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minilm", type=Path, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--texts", type=int, default=1000)
    args = parser.parse_args()
    texts = [*corpus(), *mixed_texts(args.texts, median=12)][: args.texts]
    print("| model | dtype | bytes | 1 − cosine, mean | largest | pairs, mean | largest | top 10 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, vectors in (
        ("random weights", random_weights(texts)),
        ("all-MiniLM-L6-v2", np.asarray(SentenceTransformer(str(args.minilm)).encode(texts))),
    ):
        for dtype in DTYPES:
            print(f"| {name} | {dtype} | {row(vectors, dtype)} |")


def random_weights(texts: list[str]) -> Array:
    """Return vectors [N, 1024] of a checkpoint that was never trained."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pair(folder / "hub", SHAPE, corpus())
        convert(folder / "hub" / "bge-m3", folder / "bge-m3", dtype="float32")
        settings = Settings(embed_model=folder / "bge-m3", rerank_model=None, device="cpu")
        engine = load_engine(settings)
        results: list[Any] = []
        for start in range(0, len(texts), 32):
            encoded = engine.encode_texts(texts[start : start + 32], 512)
            results += engine.run(Outputs.DENSE, encoded)
    return np.stack([result.dense for result in results])


def row(vectors: Array, dtype: Dtype) -> str:
    """Return the cells of a table for vectors [N, D] of unit length."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    integers = quantize(vectors, dtype)
    restored = restore(integers, dtype, vectors.shape[1])
    lost = 1 - np.einsum("nd,nd->n", vectors, restored)
    exact, approximate = vectors @ vectors.T, restored @ restored.T
    pairs = np.abs(exact - approximate)[np.triu_indices(len(vectors), 1)]
    kept = kept_neighbours(exact, approximate)
    cells = (lost.mean(), lost.max(), pairs.mean(), pairs.max())
    numbers = " | ".join(f"{cell:.2g}" for cell in cells)
    return f"{integers.shape[1]} | {numbers} | {kept:.1%}"


def restore(integers: npt.NDArray[Any], dtype: Dtype, width: int) -> Array:
    """Return vectors [N, D] of unit length for int8 [N, D] or binary [N, D / 8]."""
    numbers = integers.astype(np.float32)
    if dtype == "binary":
        bits = np.unpackbits((integers.astype(np.int16) + 128).astype(np.uint8), axis=1)
        numbers = bits[:, :width].astype(np.float32) * 2 - 1
    return numbers / np.linalg.norm(numbers, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
