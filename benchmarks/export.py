"""The bench's checkpoints for the peers that have a format of their own.

    python benchmarks/export.py onnxruntime|openvino|ctranslate2 MODELS

Reads `MODELS/hub` and writes `MODELS/onnxruntime` and so on, each in that peer's own environment.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CORPUS = Path(__file__).resolve().parents[1] / "builder" / "bge_builder" / "corpus.jsonl"
EMBED = "bge-m3"
EXAMPLE = torch.randint(5, 1000, (2, 16))


class Dense(nn.Module):
    """input_ids [N, t] → [N, D], as bge-m3's dense vectors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return nn.functional.normalize(hidden[:, 0], dim=-1)


class Logits(Dense):
    """input_ids [N, t] → [N, 1]."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def load(source: Path, attention: str) -> nn.Module:
    from transformers import AutoModel, AutoModelForSequenceClassification

    kind, wrap = (
        (AutoModel, Dense) if source.name == EMBED else (AutoModelForSequenceClassification, Logits)
    )
    return wrap(kind.from_pretrained(source, attn_implementation=attention)).eval()


def export_onnxruntime(source: Path, folder: Path) -> None:
    """Export fp32, fused, and int8: by output channel, which halves the error at no cost.

    Of transformers' eager attention, which ONNX Runtime's optimiser knows how to fuse; of sdpa's
    graph it fuses nothing, and is four times slower.
    """
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    config = json.loads((source / "config.json").read_text())
    axes = {0: "texts", 1: "tokens"}
    raw, target = folder / "raw" / "model.onnx", folder / f"{source.name}.onnx"
    raw.parent.mkdir()
    torch.onnx.export(
        load(source, "eager"),
        (EXAMPLE, torch.ones_like(EXAMPLE)),
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
        op_types_to_quantize=["Attention", "MatMul"],
        weight_type=QuantType.QInt8,
        per_channel=True,
        use_external_data_format=True,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},  # it cannot see into fused nodes
    )


def export_openvino(source: Path, folder: Path) -> None:
    """Convert to fp32, int8 (activations too) and int8 weights."""
    import nncf
    import openvino

    model = openvino.convert_model(load(source, "sdpa"), example_input={"input_ids": EXAMPLE})
    model.reshape([-1, -1])  # [texts, tokens]
    samples = nncf.Dataset(sample_ids(source))
    # `quantize` returns another model, `compress_weights` changes the given one.
    quantized = nncf.quantize(model, samples, model_type=nncf.ModelType.TRANSFORMER)
    openvino.save_model(quantized, folder / f"{source.name}.int8.xml")  # embeddings in fp16
    openvino.save_model(model, folder / f"{source.name}.xml", compress_to_fp16=False)
    # With one thread, OpenVINO 2026.4.1 computes a product of one int8 output wrong.
    head = nncf.IgnoredScope(patterns=[".*classifier.*"], validate=False)
    symmetric = nncf.CompressWeightsMode.INT8_SYM
    compressed = nncf.compress_weights(model, mode=symmetric, ignored_scope=head)
    openvino.save_model(compressed, folder / f"{source.name}.int8-weights.xml")


def sample_ids(source: Path) -> list[Any]:
    """Return token ids [1, t] of the shipped texts: each, and its first words as a query has."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    texts = [json.loads(line)["text"].split() for line in CORPUS.read_text("utf-8").splitlines()]
    samples = [" ".join(words[:count]) for words in texts for count in (5, 20, len(words))]
    return [np.array([encoding.ids]) for encoding in tokenizer.encode_batch_fast(samples)]


def export_ctranslate2(source: Path, folder: Path) -> None:
    """Convert the encoder to int8, and write the reranker's head beside it."""
    from ctranslate2.converters import TransformersConverter

    target = folder / source.name
    TransformersConverter(str(source)).convert(str(target), quantization="int8")
    if source.name != EMBED:
        head = load(source, "eager").model.classifier.state_dict()
        np.savez(target / "head.npz", **{name: tensor.numpy() for name, tensor in head.items()})


EXPORTS = {
    "onnxruntime": export_onnxruntime,
    "openvino": export_openvino,
    "ctranslate2": export_ctranslate2,
}


def main() -> None:
    peer, models = sys.argv[1], Path(sys.argv[2])
    folder = models / peer
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
    folder.mkdir()
    for source in sorted((models / "hub").iterdir()):
        EXPORTS[peer](source, folder)
    (folder / "done").touch()


if __name__ == "__main__":
    main()
