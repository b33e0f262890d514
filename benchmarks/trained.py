"""A trained encoder in bge-m3's format: all-MiniLM-L6-v2, which a package ships.

BERT has XLM-RoBERTa's layers. Its embeddings differ: positions are counted from the first row, and
there are two kinds of tokens, of which single texts have the first.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from bge_builder.convert import TOKENIZER_CONFIG
from bge_builder.hub_config import read_json
from checkpoints import Shape, config_of, write_json

SPECIALS = {"[CLS]": "<s>", "[SEP]": "</s>", "[UNK]": "<unk>", "[PAD]": "<pad>", "[MASK]": "<mask>"}
POSITION = "embeddings.position_embeddings.weight"
TOKEN_TYPE = "embeddings.token_type_embeddings.weight"
UNUSED_POSITIONS = 2  # XLM-RoBERTa's first rows


def write_trained(minilm: Path, folder: Path) -> None:
    """Write `folder` as bge-m3 is published. Its heads are not trained: only CLS is of use."""
    folder.mkdir(parents=True)
    tensors = load_file(minilm / "model.safetensors")
    tensors.pop("embeddings.position_ids", None)
    rows = tensors[POSITION]
    tensors[POSITION] = torch.cat([torch.zeros_like(rows[:UNUSED_POSITIONS]), rows])
    tensors[TOKEN_TYPE] = tensors[TOKEN_TYPE][:1].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    width = rows.shape[1]
    for name, outputs in (("sparse_linear", 1), ("colbert_linear", width)):
        head = {"weight": torch.eye(width)[:outputs], "bias": torch.zeros(outputs)}
        torch.save(head, folder / f"{name}.pt")
    tokenizer = write_tokenizer(minilm / "tokenizer.json", folder / "tokenizer.json")
    write_config(minilm / "config.json", folder, tokenizer)


def write_tokenizer(source: Path, target: Path) -> Tokenizer:
    """Rename the special tokens, and place them as XLM-RoBERTa's."""
    content = source.read_text("utf-8")
    for bert, roberta in SPECIALS.items():
        content = content.replace(f'"{bert}"', f'"{roberta}"')
    tokenizer = Tokenizer.from_str(content)
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    tokenizer.save(str(target))
    return tokenizer


def write_config(source: Path, folder: Path, tokenizer: Tokenizer) -> None:
    bert = read_json(source)
    shape = Shape(
        width=bert["hidden_size"],
        heads=bert["num_attention_heads"],
        feed_forward=bert["intermediate_size"],
        layers=bert["num_hidden_layers"],
        vocab_size=bert["vocab_size"],
        positions=bert["max_position_embeddings"] + UNUSED_POSITIONS,
    )
    config = config_of(shape, "XLMRobertaModel") | {
        "layer_norm_eps": bert["layer_norm_eps"],
        "bos_token_id": tokenizer.token_to_id("<s>"),
        "pad_token_id": UNUSED_POSITIONS - 1,  # no text has BERT's [unused0]
        "eos_token_id": tokenizer.token_to_id("</s>"),
    }
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
