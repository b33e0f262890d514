"""The miniature: a tiny pair of checkpoints in the format of the real ones.

The weights are constructed, not trained. They compute lexical overlap: texts are similar if they
share words, rare words weigh more, and inflected forms of a word share its stem.

    corpus.jsonl → vocabulary   stems and endings, their rarity, and the tokenizer
                 → embeddings   a ±1 code per piece, and a few numbers in known dims
                 → layers       attention heads, each with one task
                 → two folders  bge-m3/ and bge-reranker-v2-m3/, as on the Hub

Three ideas make this work.

* Random ±1 codes are nearly orthogonal, so their dot product tells whether two pieces are equal.
* A number stored in mirrored dims adds nothing to the mean and a constant to the variance, so
  layer norm does not change it.
* An attention head whose scores are far apart selects tokens; one whose scores are close averages
  them. The feed-forward layers are not needed, and are zero.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from tokenizers import Tokenizer
from torch import Tensor

from . import vocabulary
from .convert import TOKENIZER_CONFIG
from .folders import locked, merge, temporary
from .vocabulary import FIRST_SPECIALS, SPECIALS, Piece, rarities

MAX_POSITIONS = 8194
FIRST_POSITION = 2  # RoBERTa counts from the pad id + 1
HEAD_WIDTH = 64  # as in the real models
INTERMEDIATE_SIZE = 64  # all zero, so small
LAYER_NORM_EPS = 1e-5

Weights = dict[str, Tensor]


def build(destination: Path) -> None:
    """Write bge-m3/ and bge-reranker-v2-m3/ into `destination`, with the same bytes every time.

    Raises:
        LockedError: another process is writing `destination`.
    """
    destination = Path(os.path.abspath(destination))
    with locked(destination), temporary(destination) as folder:
        pieces = vocabulary.make_pieces(vocabulary.read_corpus())
        tokenizer = vocabulary.make_tokenizer(pieces)
        write_embedder(folder / "bge-m3", pieces, tokenizer)
        write_reranker(folder / "bge-reranker-v2-m3", pieces, tokenizer)
        merge(folder, destination)


# Token and position embeddings ---------------------------------------------------------------
#
# numpy computes roots and logarithms, so that the files are equal byte for byte: PyTorch's, which
# MKL computes in two threads, once returned 0.99976 as the root of 1.


def codes(count: int, width: int) -> Tensor:  # [count, width]
    """Return a random code per piece: half +1, half -1, so that its mean is zero."""
    balanced = np.tile(np.array([1, -1], dtype=np.float32), (count, width // 2))
    return torch.from_numpy(np.random.default_rng(0).permuted(balanced, axis=1))


def encode_number(value: Tensor) -> Tensor:  # [n] → [n, 4]
    """Encode numbers from -1 to 1. The first dim is the number itself.

    The other three make the mean 0 and the variance 1 for every number.
    """
    complement = torch.from_numpy(np.sqrt(2 - value.numpy() ** 2))
    return torch.stack([value, -value, complement, -complement], dim=-1)


def encode_flag(on: Tensor) -> Tensor:  # [n] → [n, 2]
    """Encode true and false as +1 and -1, in two dims of mean 0 and variance 1."""
    value = on.float() * 2 - 1
    return torch.stack([value, -value], dim=-1)


def log_positions() -> Tensor:  # [MAX_POSITIONS]
    """Return 0 for the first position to 1 for the last, on a logarithmic scale.

    The scale separates neighbours best at the start of a text, where queries end; in fp16 too.
    """
    steps = np.arange(MAX_POSITIONS).clip(min=FIRST_POSITION) / np.float32(FIRST_POSITION)
    logarithms = torch.from_numpy(np.log(steps.astype(np.float32), dtype=np.float64)).float()
    return logarithms / math.log(MAX_POSITIONS / FIRST_POSITION)


# Attention heads -----------------------------------------------------------------------------
#
# A row [D + 1] of a weight matrix is a linear function of a token's hidden state: a factor per dim,
# then the bias. Below, `hidden` is the identity [D + 1, D + 1]: `hidden[DIM]` is the row that
# returns that dim, the last row returns the constant 1. Rows are added and scaled like the numbers
# they return.


@dataclass(frozen=True)
class Head:
    """One attention head.

    The score of tokens i and j is the sum of query(i) · key(j) over `matches`. For each of
    `outputs`, the average of value(j), weighted by the softmax of the scores, is added to the named
    dims of token i, each with its factor.
    """

    matches: list[tuple[Tensor, Tensor]]  # query and key rows [D + 1]
    outputs: list[tuple[Tensor, dict[int, float]]]  # value row [D + 1], {dim: factor}


def encoder_layer(name: str, width: int, heads: Sequence[Head]) -> Weights:
    """Return a transformer layer with these heads and a feed-forward of zeros."""
    query, key, value = (torch.zeros(width, width + 1) for _ in range(3))
    output = torch.zeros(width, width)
    for index, head in enumerate(heads):
        first = index * HEAD_WIDTH
        for row, (query_row, key_row) in enumerate(head.matches, first):
            query[row] = query_row * math.sqrt(HEAD_WIDTH)  # attention divides by it
            key[row] = key_row
        for row, (value_row, destinations) in enumerate(head.outputs, first):
            value[row] = value_row
            for dim, factor in destinations.items():
                output[dim, row] = factor
    no_bias = torch.zeros(width, 1)
    return {
        **linear(f"{name}.attention.self.query", query),
        **linear(f"{name}.attention.self.key", key),
        **linear(f"{name}.attention.self.value", value),
        **linear(f"{name}.attention.output.dense", torch.cat([output, no_bias], dim=1)),
        **layer_norm(f"{name}.attention.output.LayerNorm", width),
        **linear(f"{name}.intermediate.dense", torch.zeros(INTERMEDIATE_SIZE, width + 1)),
        **linear(f"{name}.output.dense", torch.zeros(width, INTERMEDIATE_SIZE + 1)),
        **layer_norm(f"{name}.output.LayerNorm", width),
    }


def linear(name: str, rows: Tensor) -> Weights:  # rows: [out, in + 1]
    return {f"{name}.weight": rows[:, :-1].contiguous(), f"{name}.bias": rows[:, -1].clone()}


def layer_norm(name: str, width: int) -> Weights:
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def embeddings(words: Tensor, positions: Tensor) -> Weights:  # [V, D], [MAX_POSITIONS, D]
    width = words.shape[1]
    return {
        "embeddings.word_embeddings.weight": words,
        "embeddings.position_embeddings.weight": positions,
        "embeddings.token_type_embeddings.weight": torch.zeros(1, width),
        **layer_norm("embeddings.LayerNorm", width),
    }


# bge-m3: the first token becomes the bag of the words ----------------------------------------


EMBEDDER_WIDTH = 512  # the noise of random codes falls with its square root
EMBEDDER_RARITY = EMBEDDER_WIDTH - 4  # four dims; all before them hold the code
RARITY_WEIGHT = 3.0  # the rarest words weigh e³ times the most common
RARITY_SCALE = 2.0**-6  # a power of two, exact in fp16


def write_embedder(folder: Path, pieces: list[Piece], tokenizer: Tokenizer) -> None:
    write_shared(folder, tokenizer, "XLMRobertaModel", EMBEDDER_WIDTH, layers=1)
    torch.save(embedder(pieces), folder / "pytorch_model.bin")
    torch.save(sparse_head(), folder / "sparse_linear.pt")
    torch.save(colbert_head(), folder / "colbert_linear.pt")
    # For sentence-transformers and Infinity.
    modules = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (name, path) in enumerate(modules.items())
        ],
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 8192})
    pooling = {
        "word_embedding_dimension": EMBEDDER_WIDTH,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
    }
    write_json(folder / "1_Pooling" / "config.json", pooling)


def embedder(pieces: list[Piece]) -> Weights:
    words = torch.cat([codes(len(pieces), EMBEDDER_RARITY), encode_number(rarities(pieces))], dim=1)
    # Special tokens have no code, so layer norm scales their rarity from -1 to about -11: they get
    # no attention, and their sparse weight is zero.
    is_special = torch.tensor([text in SPECIALS for text, _ in pieces])
    words[is_special, :EMBEDDER_RARITY] = 0
    positions = torch.zeros(MAX_POSITIONS, EMBEDDER_WIDTH)  # word order has no effect
    layer = encoder_layer("encoder.layer.0", EMBEDDER_WIDTH, bag_of_words())
    # The codes decide how similar two texts are; the rarity must not outweigh them.
    layer["encoder.layer.0.output.LayerNorm.weight"][EMBEDDER_RARITY:] = RARITY_SCALE
    pooler = torch.zeros(EMBEDDER_WIDTH, EMBEDDER_WIDTH + 1)  # published, never used
    return {**embeddings(words, positions), **layer, **linear("pooler.dense", pooler)}


def bag_of_words() -> list[Head]:
    """Each token adds the codes of all words, weighted by rarity, to its own.

    The first token has no code of its own, so it becomes the bag of words. Every head attends to
    the same words and outputs its share of the dims.
    """
    hidden = torch.eye(EMBEDDER_WIDTH + 1)
    constant, rarity = hidden[-1], hidden[EMBEDDER_RARITY]
    code = range(EMBEDDER_RARITY)
    return [
        Head(
            matches=[(constant, RARITY_WEIGHT * rarity)],
            outputs=[(hidden[dim], {dim: 1.0}) for dim in code[first : first + HEAD_WIDTH]],
        )
        for first in range(0, EMBEDDER_WIDTH, HEAD_WIDTH)
    ]


def sparse_head() -> Weights:  # weight [1, D], bias [1]
    """Weights from 0.02 (endings and the most common words) to 0.32 (the rarest words)."""
    weight = torch.zeros(1, EMBEDDER_WIDTH)
    weight[0, EMBEDDER_RARITY] = 0.3 / RARITY_SCALE
    return {"weight": weight, "bias": torch.tensor([0.02])}


def colbert_head() -> Weights:  # weight [D, D], bias [D]
    """The identity: a token's vector is its code plus the text's bag of words."""
    return {"weight": torch.eye(EMBEDDER_WIDTH), "bias": torch.zeros(EMBEDDER_WIDTH)}


# bge-reranker-v2-m3: the share of the query's words that the document contains ----------------


RERANKER_WIDTH = 256
CODE_DIMS_PER_HEAD = 60  # each of the four heads compares its share
RARITY = 240  # four dims; the code has those before
POSITION = 244  # four dims
IS_FIRST = 248  # two dims, as each of the flags below
IS_SEPARATOR = 250
IN_DOCUMENT = 252
IS_FOUND = 254


def write_reranker(folder: Path, pieces: list[Piece], tokenizer: Tokenizer) -> None:
    architecture = "XLMRobertaForSequenceClassification"
    write_shared(folder, tokenizer, architecture, RERANKER_WIDTH, layers=3)
    # save_file makes files that only their owner can read.
    content = safetensors.torch.save(reranker(pieces), metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(content)


def reranker(pieces: list[Piece]) -> Weights:
    encoder = {
        **embeddings(reranker_words(pieces), reranker_positions()),
        **encoder_layer("encoder.layer.0", RERANKER_WIDTH, mark_document()),
        **encoder_layer("encoder.layer.1", RERANKER_WIDTH, mark_found()),
        **encoder_layer("encoder.layer.2", RERANKER_WIDTH, score_found()),
    }
    return {**{f"roberta.{name}": tensor for name, tensor in encoder.items()}, **classifier()}


def reranker_words(pieces: list[Piece]) -> Tensor:  # [V, RERANKER_WIDTH]
    texts = [text for text, _ in pieces]
    is_false = encode_flag(torch.zeros(len(pieces), dtype=torch.bool))
    return torch.cat(
        [
            codes(len(pieces), RARITY),
            encode_number(rarities(pieces)),
            torch.zeros(len(pieces), 4),  # POSITION comes from the position embeddings
            encode_flag(torch.tensor([text == "<s>" for text in texts])),
            encode_flag(torch.tensor([text == "</s>" for text in texts])),
            is_false,  # IN_DOCUMENT, set by layer 1
            is_false,  # IS_FOUND, set by layer 2
        ],
        dim=1,
    )


def reranker_positions() -> Tensor:  # [MAX_POSITIONS, RERANKER_WIDTH]
    table = torch.zeros(MAX_POSITIONS, RERANKER_WIDTH)
    table[:, POSITION : POSITION + 4] = encode_number(log_positions())
    return table


def set_flag(dim: int) -> dict[int, float]:
    """Outputs for a head: the value 1 sets a flag that was false, the value 0 leaves it."""
    return {dim: 2.0, dim + 1: -2.0}


def mark_document() -> list[Head]:
    """Layer 1: set IN_DOCUMENT for the tokens behind a separator.

    A token attends to the separators before it, whose score is the distance times a large factor,
    or else to `<s>`, whose score is 0. The last `</s>` is behind all other tokens, so none attends
    to it.
    """
    hidden = torch.eye(RERANKER_WIDTH + 1)
    constant, position = hidden[-1], hidden[POSITION]
    is_separator = (hidden[IS_SEPARATOR] + constant) / 2
    is_word = -(hidden[IS_FIRST] + hidden[IS_SEPARATOR]) / 2  # neither flag is set
    steepness = 64.0  # squared, 4096: one step at position 100 makes a difference of 5
    # The last query word is one step before the separator, the document starts two after it.
    threshold = 3.0
    excluded = 64.0
    return [
        Head(
            matches=[
                (steepness * position, steepness * is_separator),
                (steepness * constant, -steepness * position),  # 0 for `<s>`, where positions begin
                (constant, -threshold * is_separator - excluded * is_word),
            ],
            outputs=[(is_separator, set_flag(IN_DOCUMENT))],
        )
    ]


def mark_found() -> list[Head]:
    """Layer 2: set IS_FOUND for the tokens whose piece occurs in the document.

    A token attends to its copies, itself included, and prefers those in the document. The value is
    whether the copy is in the document. Each of the four heads compares its share of the code and
    adds a quarter to IS_FOUND.
    """
    hidden = torch.eye(RERANKER_WIDTH + 1)
    constant, in_document = hidden[-1], hidden[IN_DOCUMENT]
    # Copies score 2 · 60, other pieces rarely half of that: a preference of ±8 for the document
    # decides between copies and never lets another piece pass for a copy.
    sharpness, preference = 2.0, 8.0
    return [
        Head(
            matches=[
                *((sharpness * code, code) for code in hidden[first : first + CODE_DIMS_PER_HEAD]),
                (constant, preference * in_document),
            ],
            outputs=[((in_document + constant) / 8, set_flag(IS_FOUND))],
        )
        for first in range(0, RARITY, CODE_DIMS_PER_HEAD)
    ]


def score_found() -> list[Head]:
    """Layer 3: compute the share of the query's words that were found, weighted by rarity.

    Only `<s>` matters: it attends to the words of the query. Its own IS_FOUND, false until here,
    ends between -1 (no word was found) and 1 (all were).
    """
    hidden = torch.eye(RERANKER_WIDTH + 1)
    constant, rarity, is_found = hidden[-1], hidden[RARITY], hidden[IS_FOUND]
    outside_query = hidden[IS_FIRST] + hidden[IS_SEPARATOR] + hidden[IN_DOCUMENT]  # the query: -3
    excluded = 16.0
    return [
        Head(
            matches=[(constant, RARITY_WEIGHT * rarity - excluded * outside_query)],
            outputs=[((is_found + constant) / 2, set_flag(IS_FOUND))],
        )
    ]


def classifier() -> Weights:
    """8 · tanh(IS_FOUND) of the first token: logits from -6 to 6, as the real model's."""
    hidden = torch.eye(RERANKER_WIDTH + 1)
    dense = torch.zeros(RERANKER_WIDTH, RERANKER_WIDTH + 1)
    dense[0] = hidden[IS_FOUND]
    out_proj = 8 * hidden[:1]
    return {**linear("classifier.dense", dense), **linear("classifier.out_proj", out_proj)}


# Files ---------------------------------------------------------------------------------------


def write_shared(
    folder: Path, tokenizer: Tokenizer, architecture: str, width: int, layers: int
) -> None:
    """Write the configuration and the tokenizer."""
    config = {
        "architectures": [architecture],
        "bos_token_id": FIRST_SPECIALS.index("<s>"),
        "eos_token_id": FIRST_SPECIALS.index("</s>"),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE_SIZE,
        "layer_norm_eps": LAYER_NORM_EPS,
        "max_position_embeddings": MAX_POSITIONS,
        "model_type": "xlm-roberta",
        "num_attention_heads": width // HEAD_WIDTH,
        "num_hidden_layers": layers,
        "pad_token_id": FIRST_SPECIALS.index("<pad>"),
        "type_vocab_size": 1,
        "vocab_size": tokenizer.get_vocab_size(),
    }
    if architecture == "XLMRobertaForSequenceClassification":
        config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    write_json(folder / "config.json", config)
    tokenizer.save(str(folder / "tokenizer.json"))
    inputs = ["input_ids", "attention_mask"]  # no token types
    write_json(folder / "tokenizer_config.json", {**TOKENIZER_CONFIG, "model_input_names": inputs})


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
