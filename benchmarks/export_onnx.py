"""The bench's checkpoints for ONNX Runtime: `python benchmarks/export_onnx.py MODELS`.

Runs in ONNX Runtime's own virtual environment. Exported from transformers' eager attention, which
its optimiser knows how to fuse (of sdpa's graph it fuses nothing, and is four times slower), then
once more with weights and products in 8 bits.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from onnx import TensorProto
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification

EMBED, RERANK = "bge-m3", "bge-reranker-v2-m3"


class Dense(nn.Module):
    """input_ids [N, t] → [N, D], as bge-m3's dense vectors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return nn.functional.normalize(hidden[:, 0], dim=-1)


class Logits(Dense):
    """input_ids [N, t] → [N, 1]."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def export(source: Path, target: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    kind, wrap = (
        (AutoModel, Dense) if source.name == EMBED else (AutoModelForSequenceClassification, Logits)
    )
    model = wrap(kind.from_pretrained(source, attn_implementation="eager")).eval()
    ids = torch.randint(5, 1000, (2, 16))
    axes = {0: "texts", 1: "tokens"}
    raw = target.parent / "raw" / "model.onnx"
    raw.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model,
        (ids, torch.ones_like(ids)),
        str(raw),
        dynamo=False,
        opset_version=17,
        input_names=["input_ids", "attention_mask"],
        output_names=["rows"],
        dynamic_axes={"input_ids": axes, "attention_mask": axes, "rows": {0: "texts"}},
    )
    fused = optimizer.optimize_model(
        str(raw),
        model_type="bert",
        num_heads=config["num_attention_heads"],
        hidden_size=config["hidden_size"],
        opt_level=0,
    )
    if not fused.get_fused_operator_statistics()["Attention"]:
        sys.exit("the optimiser has fused no attention: this would not be ONNX Runtime at its best")
    fused.save_model_to_file(str(target), use_external_data_format=True)
    shutil.rmtree(raw.parent)
    quantize_dynamic(
        target,
        target.with_suffix(".int8.onnx"),
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},  # it cannot see into fused nodes
    )


def main() -> None:
    models = Path(sys.argv[1])
    for name in (EMBED, RERANK):
        export(models / "hub" / name, models / "onnx" / f"{name}.onnx")
    (models / "onnx" / "done").touch()


if __name__ == "__main__":
    main()
