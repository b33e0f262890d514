"""The peers of `make bench` that run on a CPU alone, from what `export.py` writes.

Each runs one text at a time, its fastest way: padding costs more than batching gains.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

THREADS = len(os.sched_getaffinity(0))
EMBED, RERANK = "bge-m3", "bge-reranker-v2-m3"
Rows = Any  # of vectors [N, D], or scores [N]


class OneByOne:
    """`load(name)` returns what computes the row [1, D or 1] of token ids [1, t]."""

    def __init__(self, models: Path) -> None:
        from tokenizers import Tokenizer

        self._models = models
        self._tokenizer = Tokenizer.from_file(str(models / "hub" / EMBED / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._model = cache(self.load)

    def load(self, name: str) -> Callable[[Rows], Rows]:
        raise NotImplementedError

    def dense(self, texts: Sequence[str]) -> Rows:
        return np.concatenate([self._run(EMBED, text) for text in texts])

    def rerank(self, query: str, documents: Sequence[str]) -> Rows:
        return np.concatenate([self._run(RERANK, query, document) for document in documents])[:, 0]

    def _run(self, name: str, *text: str) -> Rows:
        return self._model(name)(np.array([self._tokenizer.encode(*text).ids]))


class OnnxRuntime(OneByOne):
    suffix = "onnx"

    def load(self, name: str) -> Callable[[Rows], Rows]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        path = self._models / "onnxruntime" / f"{name}.{self.suffix}"
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

        def run(ids: Rows) -> Rows:
            inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            return session.run(None, inputs)[0]

        return run


class OnnxRuntimeInt8(OnnxRuntime):
    suffix = "int8.onnx"


class OpenVino(OneByOne):
    """Its graph has no mask, which one text does not need."""

    suffix = "xml"
    options: ClassVar[dict[str, Any]] = {"INFERENCE_PRECISION_HINT": "f32"}

    def load(self, name: str) -> Callable[[Rows], Rows]:
        import openvino

        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": THREADS, **self.options}
        path = self._models / "openvino" / f"{name}.{self.suffix}"
        request = openvino.compile_model(str(path), "CPU", options).create_infer_request()
        return lambda ids: request.infer([ids])[0].copy()


class OpenVinoInt8(OpenVino):
    """NNCF's `quantize`: ranges of activations by tensor, fixed by sample texts."""

    suffix = "int8.xml"
    options: ClassVar[dict[str, Any]] = {}


class OpenVinoInt8Dynamic(OpenVino):
    """NNCF's `compress_weights`; activations are quantised at run time, 128 of a row at a time."""

    suffix = "int8-weights.xml"
    options: ClassVar[dict[str, Any]] = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 128}


class CTranslate2(OneByOne):
    """Its encoder; the rest of each model, which it lacks, is computed here."""

    def load(self, name: str) -> Callable[[Rows], Rows]:
        import ctranslate2

        folder = self._models / "ctranslate2" / name
        encoder = ctranslate2.Encoder(
            str(folder), compute_type="int8", intra_threads=THREADS, inter_threads=1
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
