"""Random checkpoints of any shape in the Hub's format, with a real SentencePiece normaliser.

For tests of parity and faults, and for benchmarks. The tokenizer is trained when needed, with
XLM-RoBERTa's normalisation (nmt_nfkc), so it treats unusual characters like the published one.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import Unigram
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from bge_builder.convert import TOKENIZER_CONFIG

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")


@dataclass(frozen=True)
class Shape:
    """An architecture. `wild` draws biases and layer norms far from their initial values."""

    width: int
    heads: int
    feed_forward: int
    layers: int
    vocab_size: int = 4000
    positions: int = 8194
    wild: bool = False


def write_pair(folder: Path, shape: Shape, sentences: Iterable[str], seed: int = 0) -> None:
    """Write `folder/bge-m3` and `folder/bge-reranker-v2-m3`, as downloaded from the Hub."""
    tokenizer = train_tokenizer(sentences, shape.vocab_size)
    for name, architecture in (
        ("bge-m3", "XLMRobertaModel"),
        ("bge-reranker-v2-m3", "XLMRobertaForSequenceClassification"),
    ):
        (folder / name).mkdir(parents=True)
        tokenizer.save(str(folder / name / "tokenizer.json"))
        write_json(folder / name / "config.json", config_of(shape, architecture))
        write_json(folder / name / "tokenizer_config.json", TOKENIZER_CONFIG)
    generator = torch.Generator().manual_seed(seed)
    write_embedder(folder / "bge-m3", shape, generator)
    write_reranker(folder / "bge-reranker-v2-m3", shape, generator)


def write_embedder(folder: Path, shape: Shape, generator: torch.Generator) -> None:
    d = shape.width
    torch.save(
        encoder_weights("", shape, generator)
        | random_linear("pooler.dense", d, d, shape, generator),
        folder / "pytorch_model.bin",
    )
    for name, outputs in (("sparse_linear", 1), ("colbert_linear", d)):
        head = random_linear("", outputs, d, shape, generator)
        torch.save(
            {key.removeprefix("."): value for key, value in head.items()}, folder / f"{name}.pt"
        )
    modules = (
        ("models.Transformer", ""),
        ("models.Pooling", "1_Pooling"),
        ("models.Normalize", "2_Normalize"),
    )
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{kind}"}
            for i, (kind, path) in enumerate(modules)
        ],
    )
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": 8192, "do_lower_case": False}
    )
    for path in ("1_Pooling", "2_Normalize"):
        (folder / path).mkdir()
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": d,
            "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False,
        },
    )


def write_reranker(folder: Path, shape: Shape, generator: torch.Generator) -> None:
    d = shape.width
    weights = encoder_weights("roberta.", shape, generator)
    weights |= random_linear("classifier.dense", d, d, shape, generator)
    weights |= random_linear("classifier.out_proj", 1, d, shape, generator)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def encoder_weights(prefix: str, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    d, f = shape.width, shape.feed_forward
    rows = {"word": shape.vocab_size, "position": shape.positions, "token_type": 1}
    weights = {
        f"{prefix}embeddings.{kind}_embeddings.weight": torch.randn(n, d, generator=generator)
        * 0.05
        for kind, n in rows.items()
    }
    weights |= random_norm(f"{prefix}embeddings.LayerNorm", shape, generator)
    for i in range(shape.layers):
        layer = f"{prefix}encoder.layer.{i}."
        for part in ("query", "key", "value"):
            weights |= random_linear(f"{layer}attention.self.{part}", d, d, shape, generator)
        weights |= random_linear(f"{layer}attention.output.dense", d, d, shape, generator)
        weights |= random_norm(f"{layer}attention.output.LayerNorm", shape, generator)
        weights |= random_linear(f"{layer}intermediate.dense", f, d, shape, generator)
        weights |= random_linear(f"{layer}output.dense", d, f, shape, generator)
        weights |= random_norm(f"{layer}output.LayerNorm", shape, generator)
    return weights


def random_linear(
    name: str, outputs: int, inputs: int, shape: Shape, generator: torch.Generator
) -> dict[str, Tensor]:
    scale = inputs**-0.5
    bias = torch.randn(outputs, generator=generator) * (0.5 if shape.wild else 0.02)
    return {
        f"{name}.weight": torch.randn(outputs, inputs, generator=generator) * scale,
        f"{name}.bias": bias,
    }


def random_norm(name: str, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    spread = 0.5 if shape.wild else 0.02
    return {
        f"{name}.weight": 1 + torch.randn(shape.width, generator=generator) * spread,
        f"{name}.bias": torch.randn(shape.width, generator=generator) * spread,
    }


def train_tokenizer(sentences: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train XLM-RoBERTa's tokenizer on `sentences`; filler pieces complete the vocabulary."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=2000,
        hard_vocab_limit=False,
        character_coverage=0.9999,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces if piece.type == 1]
    lowest = min(score for _, score in pieces)
    missing_pieces = vocab_size - len(SPECIALS) - len(pieces) - 1
    assert missing_pieces >= 0, f"{len(pieces)} pieces do not fit a vocabulary of {vocab_size}"
    filler = [(f"▁filler{i}", lowest - 10) for i in range(missing_pieces)]
    vocab = [(token, 0.0) for token in SPECIALS] + pieces + filler + [("<mask>", 0.0)]
    tokenizer = Tokenizer(Unigram(vocab, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.add_special_tokens(
        [
            AddedToken(token, lstrip=token == "<mask>", normalized=False)
            for token in (*SPECIALS, "<mask>")
        ]
    )
    return tokenizer


def config_of(shape: Shape, architecture: str) -> dict[str, object]:
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return {
        "architectures": [architecture],
        "model_type": "xlm-roberta",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.feed_forward,
        "hidden_act": "gelu",
        "max_position_embeddings": shape.positions,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "position_embedding_type": "absolute",
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        **(labels if "Classification" in architecture else {}),
    }


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
