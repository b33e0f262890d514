"""The peers of `make bench` that run on a CPU alone, from what `export.py` writes.

No text is padded: that costs these more than a batch gains. One text has all threads; of several,
each has one thread, and as many are computed at a time as there are threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar

import numpy as np

THREADS = len(os.sched_getaffinity(0))
EMBED, RERANK = "bge-m3", "bge-reranker-v2-m3"
LONG = 1024  # tokens
Rows = Any  # of vectors [N, D], or scores [N]


class Peer:
    """`load` makes what computes one of the two models; a workload needs one, so it is lazy."""

    def __init__(self, models: Path) -> None:
        self.models = models
        self.model = cache(self.load)


class Unpadded(Peer):
    """`load(name, threads)` returns what computes the row [1, D or 1] of token ids [1, t]."""

    def __init__(self, models: Path) -> None:
        super().__init__(models)
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(models / "hub" / EMBED / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._pool = ThreadPoolExecutor(THREADS)

    def dense(self, texts: Sequence[str]) -> Rows:
        return self._rows(EMBED, [self._tokenizer.encode(text).ids for text in texts])

    def rerank(self, query: str, documents: Sequence[str]) -> Rows:
        pairs = [self._tokenizer.encode(query, document).ids for document in documents]
        return self._rows(RERANK, pairs)[:, 0]

    def _rows(self, name: str, texts: list[list[int]]) -> Rows:
        if len(texts) == 1:
            return self.model(name, THREADS)(np.array(texts))
        order = np.argsort([-len(ids) for ids in texts])  # so that no long text is the last
        inputs = (np.array([texts[index]]) for index in order)
        rows = list(self._pool.map(self.model(name, 1), inputs))
        return np.concatenate(rows)[np.argsort(order)]


class OnnxRuntime(Unpadded):
    suffix = "onnx"

    def load(self, name: str, threads: int) -> Callable[[Rows], Rows]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        path = self.models / "onnxruntime" / f"{name}.{self.suffix}"
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

        # The full shape's 8,192 tokens would keep 10 GB for good.
        shrink = onnxruntime.RunOptions()
        shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

        def run(ids: Rows) -> Rows:
            inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            return session.run(None, inputs, shrink if ids.size > LONG else None)[0]

        return run


class OnnxRuntimeInt8(OnnxRuntime):
    suffix = "int8.onnx"


class OpenVino(Unpadded):
    """Its graph has no mask, which one text does not need."""

    suffix = "xml"
    options: ClassVar[dict[str, Any]] = {"INFERENCE_PRECISION_HINT": "f32"}

    def load(self, name: str, threads: int) -> Callable[[Rows], Rows]:
        import openvino

        hint = "LATENCY" if threads == THREADS else "THROUGHPUT"
        options = {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": THREADS, **self.options}
        path = self.models / "openvino" / f"{name}.{self.suffix}"
        model = openvino.compile_model(str(path), "CPU", options)
        idle = SimpleQueue[Any]()
        for _ in range(THREADS):
            idle.put(model.create_infer_request())

        def run(ids: Rows) -> Rows:
            request = idle.get()
            rows = request.infer([ids])[0].copy()
            idle.put(request)
            return rows

        return run


class OpenVinoInt8(OpenVino):
    """NNCF's `quantize`: ranges of activations by tensor, fixed by sample texts."""

    suffix = "int8.xml"
    options: ClassVar[dict[str, Any]] = {}


class OpenVinoInt8Dynamic(OpenVino):
    """NNCF's `compress_weights`; activations are quantised at run time, 128 of a row at a time."""

    suffix = "int8-weights.xml"
    options: ClassVar[dict[str, Any]] = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 128}


class CTranslate2(Unpadded):
    """Its encoder; the rest of each model, which it lacks, is computed here."""

    def load(self, name: str, threads: int) -> Callable[[Rows], Rows]:
        import ctranslate2

        folder = self.models / "ctranslate2" / name
        encoder = ctranslate2.Encoder(
            str(folder),
            compute_type="int8",
            intra_threads=threads,
            inter_threads=THREADS // threads,
        )
        head = np.load(folder / "head.npz") if name == RERANK else None

        def run(ids: Rows) -> Rows:
            hidden = encoder.forward_batch(ids.tolist()).last_hidden_state
            first = np.array(hidden)[:, 0]
            if head is None:
                return first / np.linalg.norm(first, axis=1, keepdims=True)
            inner = np.tanh(first @ head["dense.weight"].T + head["dense.bias"])
            return inner @ head["out_proj.weight"].T + head["out_proj.bias"]

        return run


CPU_PEERS: dict[str, Callable[[Path], Any]] = {
    "ONNX Runtime": OnnxRuntime,
    "ONNX Runtime int8": OnnxRuntimeInt8,
    "OpenVINO": OpenVino,
    "OpenVINO int8": OpenVinoInt8,
    "OpenVINO int8, dynamic": OpenVinoInt8Dynamic,
    "CTranslate2 int8": CTranslate2,
}
