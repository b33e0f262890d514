"""The contestants of `make bench`, each in a process and a virtual environment of its own.

    python benchmarks/peers.py NAME MODELS

Each line of stdin is a task as JSON; the reply is one line of JSON with the seconds, the output and
the process's peak memory. `MODELS` contains `hub` (as published), `float32` (runtime folders) and
`onnx`. Only our own contestant imports the worker, which the other environments lack.
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

THREADS = len(os.sched_getaffinity(0))
EMBED, RERANK = "bge-m3", "bge-reranker-v2-m3"
Rows = Any  # of vectors [N, D], or scores [N]
Embed = Callable[[Sequence[str]], Rows]
Rerank = Callable[[str, Sequence[str]], Rows]


class Packed:
    """Our engine, with the micro-batches of the worker's batcher."""

    def __init__(self, models: Path, device: str = "auto") -> None:
        from bge_worker.process import prepare_process

        prepare_process()  # as the worker does, before it imports torch
        from bge_worker.engine.engine import PackedEngine
        from bge_worker.settings import Settings

        folder = models / ("float16" if cuda() and device != "cpu" else "float32")
        self._engine = PackedEngine(
            Settings(embed_model=folder / EMBED, rerank_model=folder / RERANK, device=device)
        )

    def dense(self, texts: Sequence[str]) -> Rows:
        from bge_worker.engine.outputs import Outputs

        encoded = self._engine.encode_texts(texts, max_length=8192)
        return np.stack([result.dense for result in self._run(Outputs.DENSE, encoded)])

    def all(self, texts: Sequence[str]) -> Rows:
        from bge_worker.engine.outputs import Outputs

        outputs = Outputs.DENSE | Outputs.SPARSE | Outputs.COLBERT
        results = self._run(outputs, self._engine.encode_texts(texts, max_length=8192))
        return np.stack([result.colbert[-1] for result in results])

    def rerank(self, query: str, documents: Sequence[str]) -> Rows:
        from bge_worker.engine.outputs import Outputs

        encoded = self._engine.encode_pairs([query], documents, max_length=1024)
        return np.array(self._run(Outputs.RELEVANCE, encoded))

    def _run(self, outputs: Any, waiting: list[Any]) -> list[Any]:
        from bge_worker.engine.packing import round_robin

        results: list[Any] = []
        while waiting:
            lengths = [len(text.ids) for text in waiting]
            (count,) = round_robin([lengths], self._engine.runtime.max_batch_tokens)
            results += self._engine.run(outputs, waiting[:count])
            waiting = waiting[count:]
        return results


class SentenceTransformers:
    def __init__(self, models: Path) -> None:
        from sentence_transformers import CrossEncoder, SentenceTransformer
        from torch import float16, nn

        dtype = {"model_kwargs": {"dtype": float16}} if cuda() else {}
        self._embedder = SentenceTransformer(str(models / "hub" / EMBED), **dtype)
        self._reranker = CrossEncoder(str(models / "hub" / RERANK), max_length=1024, **dtype)
        self._logit = nn.Identity()

    def dense(self, texts: Sequence[str]) -> Rows:
        return self._embedder.encode(list(texts), show_progress_bar=False)

    def rerank(self, query: str, documents: Sequence[str]) -> Rows:
        pairs = [(query, document) for document in documents]
        return self._reranker.predict(pairs, activation_fn=self._logit, show_progress_bar=False)


class FlagEmbedding:
    def __init__(self, models: Path) -> None:
        from FlagEmbedding import BGEM3FlagModel, FlagReranker

        options = {"use_fp16": cuda(), "devices": "cuda:0" if cuda() else "cpu"}
        self._embedder = BGEM3FlagModel(str(models / "hub" / EMBED), **options)
        self._reranker = FlagReranker(str(models / "hub" / RERANK), max_length=1024, **options)

    def dense(self, texts: Sequence[str]) -> Rows:
        return self._embedder.encode(list(texts), max_length=8192)["dense_vecs"]

    def all(self, texts: Sequence[str]) -> Rows:
        results = self._embedder.encode(
            list(texts), max_length=8192, return_sparse=True, return_colbert_vecs=True
        )
        return np.stack([vectors[-1] for vectors in results["colbert_vecs"]])

    def rerank(self, query: str, documents: Sequence[str]) -> Rows:
        return self._reranker.compute_score([[query, document] for document in documents])


class Infinity:
    def __init__(self, models: Path) -> None:
        import asyncio

        from infinity_emb import AsyncEngineArray, EngineArgs

        device = "cuda" if cuda() else "cpu"
        self._loop = asyncio.new_event_loop()
        engine_args = [
            EngineArgs(
                model_name_or_path=str(models / "hub" / name),
                engine="torch",
                device=device,
                dtype="float16" if cuda() else "float32",
                bettertransformer=False,
                model_warmup=False,
            )
            for name in (EMBED, RERANK)
        ]
        engines = AsyncEngineArray.from_args(engine_args)
        self._loop.run_until_complete(engines.astart())
        self._embedder, self._reranker = engines

    def dense(self, texts: Sequence[str]) -> Rows:
        results, _ = self._loop.run_until_complete(self._embedder.embed(sentences=list(texts)))
        return np.stack(results)

    def rerank(self, query: str, documents: Sequence[str]) -> Rows:
        request = self._reranker.rerank(query=query, docs=list(documents), raw_scores=True)
        results, _ = self._loop.run_until_complete(request)
        ranked = sorted(results, key=lambda result: result.index)
        return np.array([result.relevance_score for result in ranked])


class OnnxRuntime:
    """The same weights, exported and fused. Runs one text at a time, its fastest way on a CPU."""

    suffix = "onnx"

    def __init__(self, models: Path) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        self._sessions = {
            name: onnxruntime.InferenceSession(
                str(models / "onnx" / f"{name}.{self.suffix}"),
                options,
                providers=["CPUExecutionProvider"],
            )
            for name in (EMBED, RERANK)
        }
        self._tokenizer = Tokenizer.from_file(str(models / "hub" / EMBED / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def dense(self, texts: Sequence[str]) -> Rows:
        return np.concatenate([self._run(EMBED, text) for text in texts])

    def rerank(self, query: str, documents: Sequence[str]) -> Rows:
        return np.concatenate([self._run(RERANK, query, document) for document in documents])[:, 0]

    def _run(self, name: str, *text: str) -> Rows:
        ids = np.array([self._tokenizer.encode(*text).ids])
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        (rows,) = self._sessions[name].run(None, inputs)
        return rows


class OnnxRuntimeInt8(OnnxRuntime):
    """Weights and products in 8 bits: less exact, faster on processors with 8-bit products."""

    suffix = "int8.onnx"


PEERS: dict[str, Callable[[Path], Any]] = {
    "the machine": lambda _models: None,
    "bge-serverless": Packed,
    "sentence-transformers": SentenceTransformers,
    "FlagEmbedding": FlagEmbedding,
    "Infinity": Infinity,
    "ONNX Runtime": OnnxRuntime,
    "ONNX Runtime int8": OnnxRuntimeInt8,
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
    """Return the median seconds of `repeat` runs, the output's first rows, and the peak memory.

    Repeated tasks run once before: the other contestants have emptied the caches.
    """
    if task["repeat"] > 1:
        run_task(peer, task)
    times = []
    for _ in range(task["repeat"]):
        start = perf_counter()
        rows = run_task(peer, task)
        times.append(perf_counter() - start)
    rows = np.asarray(rows, np.float32)[:4].tolist()
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
