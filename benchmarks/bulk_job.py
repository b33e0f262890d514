"""One run that `bulk.py` measures, in a process of its own: the engine alone, or a job on Ray.

Prints a line of JSON for each partition, with the time at which it was finished and this process's
seconds of CPU time until then.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bge_retrieval.bulk.engine import Engine, EngineOptions, tokenize
from bge_retrieval.bulk.folder import OutputFolder
from bge_retrieval.bulk.job import open_job
from bge_retrieval.bulk.manifest import ModelIdentity, Options
from bge_retrieval.bulk.partition import parse
from bge_retrieval.bulk.sources import open_files
from bge_worker.engine.outputs import Embedding, SparseVector
from bge_worker.process import prepare_process

DIMENSIONS = 1024  # of the engine that computes nothing
VECTORS = 4096  # that it has
TERMS = 8  # of its sparse vectors


class FakeEngine(Engine):
    """Gives the vectors of other texts: takes no time."""

    def __init__(self, options: EngineOptions) -> None:
        rng = np.random.default_rng(0)
        vectors = rng.standard_normal((VECTORS, DIMENSIONS), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        indices, values = np.arange(TERMS, dtype=np.int32), np.ones(TERMS, np.float32)
        sparse = SparseVector(indices, values)
        self._embeddings = [Embedding(dense, sparse, None) for dense in vectors]
        self.device = "none"
        self.identity = ModelIdentity("fake", None, "0" * 16, DIMENSIONS)

    def embed(self, encoded: Sequence[Any], options: Options) -> list[Any]:
        repeats = -(-len(encoded) // VECTORS)
        return (self._embeddings * repeats)[: len(encoded)]

    def probe(self) -> dict[str, Any]:
        return {}


def run_alone(model: str, source: str, partition_rows: int) -> Iterator[dict[str, Any]]:
    """Embed the partitions with the engine alone. Its seconds exclude reading and tokenising."""
    prepare_process()
    options = Options(partition_rows=partition_rows)
    files = open_files(source)
    parts = files.parts(partition_rows)
    engine = Engine(EngineOptions(model, "cpu", threads=1))
    for number, rows in enumerate(files.read(parts)):
        texts = parse(number, parts[number], rows, options.text_fields).texts
        encoded = tokenize(model, texts, None)
        start = time.monotonic()
        engine.embed(encoded, options)
        yield {
            "rows": len(texts),
            "tokens": sum(len(text.ids) for text in encoded),
            "seconds": time.monotonic() - start,
        }


def run_job(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from bge_retrieval.bulk import ray_pipeline

    engine_class = FakeEngine if args.fake else Engine
    engine = EngineOptions(args.model, "cpu")
    ray_pipeline.connect(None)
    pool = ray_pipeline.choose_pool(args.actors, 1, "cpu")
    identity = ray_pipeline.identify(engine, pool, engine_class)
    options = Options(partition_rows=args.partition_rows)
    job = open_job(OutputFolder(args.to), open_files(args.source), options, identity)
    for entry in ray_pipeline.run(job, engine, pool, engine_class):
        yield {
            "rows": entry.written,
            "tokens": entry.tokens,
            "seconds": entry.seconds,
            "actor": int(entry.actor.rpartition("/")[2]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--model", required=True)
    parser.add_argument("--to", help="output folder: run a job on Ray, not the engine alone")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--partition-rows", type=int, default=1000)
    parser.add_argument("--fake", action="store_true", help="an engine that computes nothing")
    args = parser.parse_args()
    alone = run_alone(args.model, args.source, args.partition_rows)
    for partition in run_job(args) if args.to else alone:
        clocks = {"time": time.monotonic(), "cpu": time.process_time()}
        print(json.dumps(clocks | partition), flush=True)


if __name__ == "__main__":
    main()
