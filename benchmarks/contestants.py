"""The contestants of `make bench`: their packages, environments and outputs, in the tables' order.

`peers.py` and `cpu_peers.py` contain their code, which runs in each one's own environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from workload import ROOT

OURS, OURS_INT8 = "bge-serverless", "bge-serverless int8"
ALL = ("dense", "all", "rerank")


class Contestant(NamedTuple):
    """`environment` is that of a peer: `requirements/*.txt` without the suffix."""

    package: str = ""
    environment: str = ""
    kinds: tuple[str, ...] = ("dense", "rerank")
    devices: tuple[str, ...] = ("cpu",)

    @property
    def venv(self) -> Path:
        return ROOT / f".venv-{self.environment}" if self.environment else ROOT / ".venv"


CONTESTANTS = {
    OURS: Contestant(kinds=ALL, devices=("cpu", "cuda")),
    "ONNX Runtime": Contestant("onnxruntime", "onnxruntime"),
    "OpenVINO": Contestant("openvino", "openvino"),
    "Infinity": Contestant("infinity-emb", "infinity", devices=("cpu", "cuda")),
    "sentence-transformers": Contestant(
        "sentence-transformers", "sentence-transformers", devices=("cpu", "cuda")
    ),
    "FlagEmbedding": Contestant("FlagEmbedding", "flagembedding", ALL, ("cpu", "cuda")),
    OURS_INT8: Contestant(kinds=ALL),
    "ONNX Runtime int8": Contestant("onnxruntime", "onnxruntime"),
    "OpenVINO int8": Contestant("openvino", "openvino"),
    "OpenVINO int8, dynamic": Contestant("openvino", "openvino"),
    "CTranslate2 int8": Contestant("ctranslate2", "ctranslate2"),
}


def is_int8(name: str) -> bool:
    """Whether the contestant is compared with our int8, and need not agree with fp32."""
    return "int8" in name
