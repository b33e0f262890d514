"""The contestants of `make bench`, each in a process and a virtual environment of its own.

    python benchmarks/peers.py NAME MODELS

answers each line of stdin, a task as JSON, with one line of JSON: the seconds it took, the output,
the process' peak memory. `MODELS` holds `hub` (as published), `float32` (as a worker's image has
them) and `onnx`. Nothing here imports another module of ours but the worker, and that only for
itself: the others' environments do not have it.
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
    """Ours: requests cut into micro-batches as the worker's batcher cuts them."""

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

        encoded = self._engine.encode_pairs(query, documents, max_length=1024)
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

        where = {"use_fp16": cuda(), "devices": "cuda:0" if cuda() else "cpu"}
        self._embedder = BGEM3FlagModel(str(models / "hub" / EMBED), **where)
        self._reranker = FlagReranker(str(models / "hub" / RERANK), max_length=1024, **where)

    def dense(self, texts: Sequence[str]) -> Rows:
        return self._embedder.encode(list(texts), max_length=8192)["dense_vecs"]

    def all(self, texts: Sequence[str]) -> Rows:
        found = self._embedder.encode(
            list(texts), max_length=8192, return_sparse=True, return_colbert_vecs=True
        )
        return np.stack([one[-1] for one in found["colbert_vecs"]])

    def rerank(self, query: str, documents: Sequence[str]) -> Rows:
        return self._reranker.compute_score([[query, document] for document in documents])


class Infinity:
    def __init__(self, models: Path) -> None:
        import asyncio

        from infinity_emb import AsyncEngineArray, EngineArgs

        device = "cuda" if cuda() else "cpu"
        self._loop = asyncio.new_event_loop()
        arguments = [
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
        engines = AsyncEngineArray.from_args(arguments)
        self._loop.run_until_complete(engines.astart())
        self._embedder, self._reranker = engines

    def dense(self, texts: Sequence[str]) -> Rows:
        found, _ = self._loop.run_until_complete(self._embedder.embed(sentences=list(texts)))
        return np.stack(found)

    def rerank(self, query: str, documents: Sequence[str]) -> Rows:
        asked = self._reranker.rerank(query=query, docs=list(documents), raw_scores=True)
        found, _ = self._loop.run_until_complete(asked)
        return np.array([one.relevance_score for one in sorted(found, key=lambda one: one.index)])


class OnnxRuntime:
    """The same weights, exported and fused; one text at a time, the fastest way it has on a CPU."""

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
        (found,) = self._sessions[name].run(
            None, {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        )
        return found


class OnnxRuntimeInt8(OnnxRuntime):
    """Weights and products in 8 bits: faster where the processor has such products, less exact."""

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


def work(peer: Any, task: dict[str, Any]) -> Rows:
    if task["kind"] == "rerank":
        return peer.rerank(task["query"], task["texts"])
    return getattr(peer, task["kind"])(task["texts"])


def timed(peer: Any, task: dict[str, Any]) -> dict[str, Any]:
    """Seconds, the median of `repeat` runs; the output's first rows, to be compared; MB.

    Short work is done once beforehand: the others' turn has emptied the caches.
    """
    if task["repeat"] > 1:
        work(peer, task)
    taken = []
    for _ in range(task["repeat"]):
        began = perf_counter()
        rows = work(peer, task)
        taken.append(perf_counter() - began)
    rows = np.asarray(rows, np.float32)[:4].tolist()
    return {"seconds": statistics.median(taken), "rows": rows, **peak_memory()}


def peak_memory() -> dict[str, int]:
    found = {"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    if cuda():
        import torch

        found["peak_gpu_mb"] = torch.cuda.max_memory_allocated() >> 20
    return found


def ceilings() -> dict[str, float]:
    """What this machine does at best, now: a large product, a copy, and reading alone."""
    import torch

    rows, inner, columns = 2048, 1024, 4096
    dtype, device = (torch.float16, "cuda") if cuda() else (torch.float32, "cpu")
    if cuda():
        rows, inner, columns = 8192, 8192, 8192
    a = torch.randn(rows, inner, device=device, dtype=dtype)
    b = torch.randn(inner, columns, device=device, dtype=dtype)
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    one = torch.randn(1 << (29 if cuda() else 26), dtype=torch.float32, device=device)
    two = torch.empty_like(one)
    product = best(lambda: torch.mm(a, b, out=out))
    copy = best(lambda: two.copy_(one))
    read = best(lambda: torch.sum(one))
    return {
        "gflops": 2 * rows * inner * columns / product / 1e9,
        "copy_gb_s": 2 * one.nbytes / copy / 1e9,
        "read_gb_s": one.nbytes / read / 1e9,
    }


def best(action: Callable[[], object], times: int = 8) -> float:
    import torch

    taken = []
    for _ in range(times):
        began = perf_counter()
        action()
        if cuda():
            torch.cuda.synchronize()
        taken.append(perf_counter() - began)
    return min(taken)


def main() -> None:
    name, models = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print must not mix in
        peer = PEERS[name](models)
        for line in sys.stdin:
            task = json.loads(line)
            answer = ceilings() if task["kind"] == "ceilings" else timed(peer, task)
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
