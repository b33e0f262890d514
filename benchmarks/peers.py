"""The contestants of `make bench`, each in a process and a virtual environment of its own.

    python benchmarks/peers.py NAME MODELS

Each line of stdin is a task as JSON; the reply is one line of JSON with the seconds, the output and
the process's peak memory. `MODELS` contains `hub` (as published), our runtime folders by dtype, and
what `export.py` writes. Only our own contestants import the worker, which the other environments
lack.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from cpu_peers import CPU_PEERS, EMBED, RERANK, Peer, Rows

Embed = Callable[[Sequence[str]], Rows]
Rerank = Callable[[str, Sequence[str]], Rows]


class Packed(Peer):
    """Our engine, with the micro-batches of the worker's batcher."""

    dtype = "float32"  # of the runtime folder, on a CPU

    def __init__(self, models: Path, device: str = "auto") -> None:
        super().__init__(models)
        from bge_worker.process import prepare_process

        prepare_process()  # as the worker does, before it imports torch
        self._device = device

    def load(self, name: str) -> Any:
        from bge_worker.engine.engine import PackedEngine
        from bge_worker.settings import Settings

        dtype = "float16" if cuda() and self._device != "cpu" else self.dtype
        folder = self.models / dtype / name
        embed_model, rerank_model = (folder, None) if name == EMBED else (None, folder)
        return PackedEngine(Settings(embed_model, rerank_model, self._device, dtype))

    def dense(self, texts: Sequence[str]) -> Rows:
        from bge_worker.engine.outputs import Outputs

        return np.stack([result.dense for result in self._embed(Outputs.DENSE, texts)])

    def all(self, texts: Sequence[str]) -> Rows:
        return np.stack([result.colbert[-1] for result in self.outputs(texts)])

    def outputs(self, texts: Sequence[str]) -> list[Any]:
        """Return the three outputs of each text."""
        from bge_worker.engine.outputs import Outputs

        return self._embed(Outputs.DENSE | Outputs.SPARSE | Outputs.COLBERT, texts)

    def rerank(self, query: str, documents: Sequence[str]) -> Rows:
        from bge_worker.engine.outputs import Outputs

        encoded = self.model(RERANK).encode_pairs([query], documents, max_length=1024)
        return np.array(self._run(RERANK, Outputs.RELEVANCE, encoded))

    def _embed(self, outputs: Any, texts: Sequence[str]) -> list[Any]:
        encoded = self.model(EMBED).encode_texts(texts, max_length=8192)
        return self._run(EMBED, outputs, encoded)

    def _run(self, name: str, outputs: Any, waiting: list[Any]) -> list[Any]:
        from bge_worker.engine.packing import round_robin

        engine, results = self.model(name), []
        while waiting:
            lengths = [len(text.ids) for text in waiting]
            (count,) = round_robin([lengths], engine.runtime.max_batch_tokens)
            results += engine.run(outputs, waiting[:count])
            waiting = waiting[count:]
        return results


class PackedInt8(Packed):
    dtype = "int8"


class SentenceTransformers(Peer):
    def load(self, name: str) -> Any:
        from sentence_transformers import CrossEncoder, SentenceTransformer
        from torch import float16

        folder = str(self.models / "hub" / name)
        options = {"model_kwargs": {"dtype": float16}} if cuda() else {}
        if name == EMBED:
            return SentenceTransformer(folder, **options)
        return CrossEncoder(folder, max_length=1024, **options)

    def dense(self, texts: Sequence[str]) -> Rows:
        return self.model(EMBED).encode(list(texts), show_progress_bar=False)

    def rerank(self, query: str, documents: Sequence[str]) -> Rows:
        from torch.nn import Identity

        options = {"activation_fn": Identity(), "show_progress_bar": False}
        return self.model(RERANK).predict([(query, text) for text in documents], **options)


class FlagEmbedding(Peer):
    def load(self, name: str) -> Any:
        from FlagEmbedding import BGEM3FlagModel, FlagReranker

        folder = str(self.models / "hub" / name)
        options = {"use_fp16": cuda(), "devices": "cuda:0" if cuda() else "cpu"}
        if name == EMBED:
            return BGEM3FlagModel(folder, **options)
        return FlagReranker(folder, max_length=1024, **options)

    def dense(self, texts: Sequence[str]) -> Rows:
        return self.model(EMBED).encode(list(texts), max_length=8192)["dense_vecs"]

    def all(self, texts: Sequence[str]) -> Rows:
        results = self.model(EMBED).encode(
            list(texts), max_length=8192, return_sparse=True, return_colbert_vecs=True
        )
        return np.stack([vectors[-1] for vectors in results["colbert_vecs"]])

    def rerank(self, query: str, documents: Sequence[str]) -> Rows:
        return self.model(RERANK).compute_score([[query, document] for document in documents])


class Infinity(Peer):
    def load(self, name: str) -> Any:
        import asyncio

        from infinity_emb import AsyncEngineArray, EngineArgs

        arguments = EngineArgs(
            model_name_or_path=str(self.models / "hub" / name),
            engine="torch",
            device="cuda" if cuda() else "cpu",
            dtype="float16" if cuda() else "float32",
            bettertransformer=False,
            model_warmup=False,
        )
        engines = AsyncEngineArray.from_args([arguments])
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(engines.astart())
        (engine,) = engines
        return engine

    def dense(self, texts: Sequence[str]) -> Rows:
        request = self.model(EMBED).embed(sentences=list(texts))
        results, _ = self._loop.run_until_complete(request)
        return np.stack(results)

    def rerank(self, query: str, documents: Sequence[str]) -> Rows:
        request = self.model(RERANK).rerank(query=query, docs=list(documents), raw_scores=True)
        results, _ = self._loop.run_until_complete(request)
        ranked = sorted(results, key=lambda result: result.index)
        return np.array([result.relevance_score for result in ranked])


PEERS: dict[str, Callable[[Path], Any]] = {
    "the machine": lambda _models: None,
    "bge-serverless": Packed,
    "bge-serverless int8": PackedInt8,
    "sentence-transformers": SentenceTransformers,
    "FlagEmbedding": FlagEmbedding,
    "Infinity": Infinity,
    **CPU_PEERS,
}


def cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def run_task(peer: Any, task: dict[str, Any]) -> Rows:
    if task["kind"] == "rerank":
        return peer.rerank(task["query"], task["texts"])
    return getattr(peer, task["kind"])(task["texts"])


def measure(peer: Any, task: dict[str, Any]) -> dict[str, Any]:
    """Return the median seconds of `repeat` runs, `rows` of the output, and the peak memory.

    Repeated tasks run once before: the other contestants have emptied the caches.
    """
    if task["repeat"] > 1:
        run_task(peer, task)
    times = []
    for _ in range(task["repeat"]):
        start = perf_counter()
        rows = run_task(peer, task)
        times.append(perf_counter() - start)
    rows = np.asarray(rows, np.float32)[: task.get("rows", 4)].tolist()
    return {"seconds": statistics.median(times), "rows": rows, **peak_memory()}


def peak_memory() -> dict[str, int]:
    peaks = {"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    if cuda():
        import torch

        peaks["peak_gpu_mb"] = torch.cuda.max_memory_allocated() >> 20
    return peaks


def measure_ceilings() -> dict[str, float]:
    """Return this machine's current best rates of a large product, a copy and a read."""
    import torch

    rows, inner, columns = 2048, 1024, 4096
    dtype, device = (torch.float16, "cuda") if cuda() else (torch.float32, "cpu")
    if cuda():
        rows, inner, columns = 8192, 8192, 8192
    a = torch.randn(rows, inner, device=device, dtype=dtype)
    b = torch.randn(inner, columns, device=device, dtype=dtype)
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    source = torch.randn(1 << (29 if cuda() else 26), dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    product = fastest(lambda: torch.mm(a, b, out=out))
    if not cuda():  # MKL is not the fastest everywhere
        weight = torch.ops.mkldnn._reorder_linear_weight(b.t().contiguous(), rows)
        onednn = torch.ops.mkldnn._linear_pointwise.default
        product = min(product, fastest(lambda: onednn(a, weight, None, "none", [], "")))
    copy = fastest(lambda: target.copy_(source))
    read = fastest(lambda: torch.sum(source))
    return {
        "gflops": 2 * rows * inner * columns / product / 1e9,
        "copy_gb_s": 2 * source.nbytes / copy / 1e9,
        "read_gb_s": source.nbytes / read / 1e9,
    }


def fastest(action: Callable[[], object], repeats: int = 8) -> float:
    import torch

    times = []
    for _ in range(repeats):
        start = perf_counter()
        action()
        if cuda():
            torch.cuda.synchronize()
        times.append(perf_counter() - start)
    return min(times)


def main() -> None:
    name, models = sys.argv[1], Path(sys.argv[2])
    stdout = os.fdopen(os.dup(1), "w")
    with contextlib.redirect_stdout(sys.stderr):  # keeps what libraries print out of the replies
        peer = PEERS[name](models)
        for line in sys.stdin:
            task = json.loads(line)
            reply = measure_ceilings() if task["kind"] == "ceilings" else measure(peer, task)
            print(json.dumps(reply), file=stdout, flush=True)


if __name__ == "__main__":
    main()
