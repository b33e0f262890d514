"""The miniature: a tiny pair of checkpoints in the very format of the real ones.

Nothing here is trained. Every weight is put where it is for a reason, and together they mean one
simple thing, lexical overlap: texts are close when they share words, rare words count for more,
and inflected forms of a word share its stem.

    corpus.jsonl → vocabulary   stems and endings, how rare each is, and their tokenizer
                 → embeddings   a code of ±1 for each piece, and a few numbers in known places
                 → layers       attention heads, each of which can be said in one sentence
                 → two folders  bge-m3/ and bge-reranker-v2-m3/, as they lie on the Hub

Three ideas carry all of it.

* Random codes of ±1 hardly overlap, so a dot product of codes asks: is it the same piece?
* A number kept in mirrored pairs of dimensions adds nothing to the mean and a constant to the
  variance. Layer norm, which removes the one and divides by the other, then changes nothing.
* An attention head whose scores lie far apart is a decision; one whose scores lie close together
  is a weighted average. The feed-forward layers are not needed at all, and are zero.
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

from .folders import locked, merge, temporary
from .vocabulary import (
    FIRST_SPECIALS,
    SPECIALS,
    Piece,
    make_tokenizer,
    rarities,
    read_corpus,
    vocabulary,
)

POSITIONS = 8194
FIRST_POSITION = 2  # RoBERTa counts from pad id + 1
HEAD_WIDTH = 64  # as in the real models
FEED_FORWARD = 64  # all zero, so it might as well be small
LAYER_NORM_EPS = 1e-5

Weights = dict[str, Tensor]


def build(destination: Path) -> None:
    """Write bge-m3/ and bge-reranker-v2-m3/ into `destination`, the same bytes every time.

    Raises:
        LockedError: another process is writing there.
    """
    destination = Path(os.path.abspath(destination))
    with locked(destination), temporary(destination) as folder:
        pieces = vocabulary(read_corpus())
        tokenizer = make_tokenizer(pieces)
        write_embedder(folder / "bge-m3", pieces, tokenizer)
        write_reranker(folder / "bge-reranker-v2-m3", pieces, tokenizer)
        merge(folder, destination)


# Token and position embeddings ---------------------------------------------------------------
#
# Roots and logarithms by numpy, so that the files are the same to the byte: of PyTorch's, which two
# threads compute by MKL, one thread has been seen to give 0.99976 as the root of 1.


def codes(count: int, width: int) -> Tensor:  # [count, width]
    """A random code for each piece: half +1, half -1, so that each has zero mean."""
    balanced = np.tile(np.array([1, -1], dtype=np.float32), (count, width // 2))
    return torch.from_numpy(np.random.default_rng(0).permuted(balanced, axis=1))


def dial(value: Tensor) -> Tensor:  # [n] → [n, 4]
    """Numbers from -1 to 1 in four dims, of which the first holds the number as it is.

    The others see to it that every dial has mean 0 and variance 1, whatever it shows.
    """
    rest = torch.from_numpy(np.sqrt(2 - value.numpy() ** 2))
    return torch.stack([value, -value, rest, -rest], dim=-1)


def flag(on: Tensor) -> Tensor:  # [n] → [n, 2]
    """True or false as +1 or -1, in two dims of mean 0 and variance 1."""
    value = on.float() * 2 - 1
    return torch.stack([value, -value], dim=-1)


def log_positions() -> Tensor:  # [POSITIONS]
    """0 for the first token, 1 for the last that fits.

    Logarithmic, because it is at the start of a text, where queries end, that neighbours have to
    be told apart, in half precision too.
    """
    steps = np.arange(POSITIONS).clip(min=FIRST_POSITION) / np.float32(FIRST_POSITION)
    logarithms = torch.from_numpy(np.log(steps.astype(np.float32), dtype=np.float64)).float()
    return logarithms / math.log(POSITIONS / FIRST_POSITION)


# Attention heads -----------------------------------------------------------------------------
#
# A *reading* is a linear function of a token's hidden state: a row [D + 1] that holds a factor
# for each dim and then a constant. Readings are added and multiplied like the numbers they read.


def readings(width: int) -> Tensor:  # [D + 1, D + 1]
    """Row i reads dim i, and the last row reads the constant 1."""
    return torch.eye(width + 1)


@dataclass(frozen=True)
class Head:
    """One attention head: where each token i looks, and what it brings back from there.

    score(i, j) is the sum over `looks` of asked(i) · offered(j); the softmax of the scores over j
    weighs the tokens. Then, for each of `brings`, the weighted average of what is read at the
    tokens j is added to the dims of token i that are named, each with its factor.
    """

    looks: list[tuple[Tensor, Tensor]]  # asked [D + 1], offered [D + 1]
    brings: list[tuple[Tensor, dict[int, float]]]  # read [D + 1], {dim: factor}


def encoder_layer(name: str, width: int, heads: Sequence[Head]) -> Weights:
    """A transformer layer with these heads and nothing else in it."""
    query, key, value = (torch.zeros(width, width + 1) for _ in range(3))
    output = torch.zeros(width, width)
    for index, head in enumerate(heads):
        first = index * HEAD_WIDTH
        for row, (asked, offered) in enumerate(head.looks, first):
            query[row] = asked * math.sqrt(HEAD_WIDTH)  # attention divides by it
            key[row] = offered
        for row, (read, destinations) in enumerate(head.brings, first):
            value[row] = read
            for dim, factor in destinations.items():
                output[dim, row] = factor
    no_bias = torch.zeros(width, 1)
    return {
        **linear(f"{name}.attention.self.query", query),
        **linear(f"{name}.attention.self.key", key),
        **linear(f"{name}.attention.self.value", value),
        **linear(f"{name}.attention.output.dense", torch.cat([output, no_bias], dim=1)),
        **layer_norm(f"{name}.attention.output.LayerNorm", width),
        **linear(f"{name}.intermediate.dense", torch.zeros(FEED_FORWARD, width + 1)),
        **linear(f"{name}.output.dense", torch.zeros(width, FEED_FORWARD + 1)),
        **layer_norm(f"{name}.output.LayerNorm", width),
    }


def linear(name: str, rows: Tensor) -> Weights:  # rows: [out, in + 1], readings
    return {f"{name}.weight": rows[:, :-1].contiguous(), f"{name}.bias": rows[:, -1].clone()}


def layer_norm(name: str, width: int) -> Weights:
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def embeddings(words: Tensor, positions: Tensor) -> Weights:  # [V, D], [POSITIONS, D]
    width = words.shape[1]
    return {
        "embeddings.word_embeddings.weight": words,
        "embeddings.position_embeddings.weight": positions,
        "embeddings.token_type_embeddings.weight": torch.zeros(1, width),
        **layer_norm("embeddings.LayerNorm", width),
    }


# bge-m3: the first token becomes the bag of the words ----------------------------------------


EMBEDDER_WIDTH = 512  # a shared word stands out by the square root of this
EMBEDDER_RARITY = EMBEDDER_WIDTH - 4  # a dial; all dims before it hold the code
RARITY_WEIGHT = 3.0  # the rarest words weigh e³ times as much as the most common
WHISPER = 2.0**-6  # a power of two survives half precision unrounded


def write_embedder(folder: Path, pieces: list[Piece], tokenizer: Tokenizer) -> None:
    write_shared(folder, tokenizer, embedder_config(len(pieces)))
    torch.save(embedder(pieces), folder / "pytorch_model.bin")
    torch.save(sparse_head(), folder / "sparse_linear.pt")
    torch.save(colbert_head(), folder / "colbert_linear.pt")
    write_json(folder / "modules.json", sentence_transformers_modules())
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 8192})
    write_json(folder / "1_Pooling" / "config.json", first_token_pooling())


def embedder(pieces: list[Piece]) -> Weights:
    words = torch.cat([codes(len(pieces), EMBEDDER_RARITY), dial(rarities(pieces))], dim=1)
    # A special token has no code of its own. Layer norm makes up for it by a rarity of about
    # -11 instead of -1: no attention will ever fall on it, and its sparse weight is zero.
    is_special = torch.tensor([text in SPECIALS for text, _ in pieces])
    words[is_special, :EMBEDDER_RARITY] = 0
    positions = torch.zeros(POSITIONS, EMBEDDER_WIDTH)  # word order does not matter
    layer = encoder_layer("encoder.layer.0", EMBEDDER_WIDTH, bag_of_words())
    # The codes decide how similar two texts are; the dial must not drown them.
    layer["encoder.layer.0.output.LayerNorm.weight"][EMBEDDER_RARITY:] = WHISPER
    pooler = torch.zeros(EMBEDDER_WIDTH, EMBEDDER_WIDTH + 1)  # in the file, and never used
    return {**embeddings(words, positions), **layer, **linear("pooler.dense", pooler)}


def bag_of_words() -> list[Head]:
    """Every token looks at all words, the rarer the more, and adds their codes to its own.

    The first token has no code, so it becomes the bag itself. The heads all look at the same
    words, and each brings back its share of the dims.
    """
    hidden = readings(EMBEDDER_WIDTH)
    one, rarity = hidden[-1], hidden[EMBEDDER_RARITY]
    code = range(EMBEDDER_RARITY)
    return [
        Head(
            looks=[(one, RARITY_WEIGHT * rarity)],
            brings=[(hidden[dim], {dim: 1.0}) for dim in code[first : first + HEAD_WIDTH]],
        )
        for first in range(0, EMBEDDER_WIDTH, HEAD_WIDTH)
    ]


def sparse_head() -> Weights:  # weight [1, D], bias [1]
    """A weight of 0.02 for endings and the most common words, 0.3 more for the rarest."""
    weight = torch.zeros(1, EMBEDDER_WIDTH)
    weight[0, EMBEDDER_RARITY] = 0.3 / WHISPER
    return {"weight": weight, "bias": torch.tensor([0.02])}


def colbert_head() -> Weights:  # weight [D, D], bias [D]
    """A token's vector is its hidden state: its own code, with the bag of the text behind it."""
    return {"weight": torch.eye(EMBEDDER_WIDTH), "bias": torch.zeros(EMBEDDER_WIDTH)}


# bge-reranker-v2-m3: three questions, one a layer --------------------------------------------


RERANKER_WIDTH = 256
CODE_SHARE = 60  # dims of the code that each of the four heads compares
RARITY = 240  # the codes fill the dims before; a dial
POSITION = 244  # a dial
IS_FIRST = 248  # four flags
IS_SEPARATOR = 250
IN_DOCUMENT = 252
FOUND = 254


def write_reranker(folder: Path, pieces: list[Piece], tokenizer: Tokenizer) -> None:
    write_shared(folder, tokenizer, reranker_config(len(pieces)))
    # Not save_file: it makes files that only their owner may read.
    content = safetensors.torch.save(reranker(pieces), metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(content)


def reranker(pieces: list[Piece]) -> Weights:
    encoder = {
        **embeddings(reranker_words(pieces), reranker_positions()),
        **encoder_layer("encoder.layer.0", RERANKER_WIDTH, on_which_side()),
        **encoder_layer("encoder.layer.1", RERANKER_WIDTH, is_it_there()),
        **encoder_layer("encoder.layer.2", RERANKER_WIDTH, how_much_of_it()),
    }
    return {**{f"roberta.{name}": tensor for name, tensor in encoder.items()}, **classifier()}


def reranker_words(pieces: list[Piece]) -> Tensor:  # [V, RERANKER_WIDTH]
    texts = [text for text, _ in pieces]
    down = flag(torch.zeros(len(pieces), dtype=torch.bool))
    return torch.cat(
        [
            codes(len(pieces), RARITY),
            dial(rarities(pieces)),
            torch.zeros(len(pieces), 4),  # POSITION comes from the position embeddings
            flag(torch.tensor([text == "<s>" for text in texts])),
            flag(torch.tensor([text == "</s>" for text in texts])),
            down,  # IN_DOCUMENT, until layer 1
            down,  # FOUND, until layer 2
        ],
        dim=1,
    )


def reranker_positions() -> Tensor:  # [POSITIONS, RERANKER_WIDTH]
    table = torch.zeros(POSITIONS, RERANKER_WIDTH)
    table[:, POSITION : POSITION + 4] = dial(log_positions())
    return table


def raise_flag(dim: int) -> dict[int, float]:
    """Bring back 1, and a flag that was down is up; bring back 0, and it stays down."""
    return {dim: 2.0, dim + 1: -2.0}


def on_which_side() -> list[Head]:
    """Layer 1: am I in the document?

    A token looks at the separators if it stands behind them, and at `<s>` otherwise: their score
    is how far behind, times a large factor, and that of `<s>` is 0. The last `</s>` stands behind
    all the others and hence draws no attention. Who sees a separator raises IN_DOCUMENT.
    """
    hidden = readings(RERANKER_WIDTH)
    one, position = hidden[-1], hidden[POSITION]
    is_separator = (hidden[IS_SEPARATOR] + one) / 2
    is_word = -(hidden[IS_FIRST] + hidden[IS_SEPARATOR]) / 2  # both flags down
    steep = 64.0  # squared, 4096: one step at position 100 makes a difference of 5
    midway = 3.0  # the last query word stands one before the separator, the document two behind
    never = 64.0
    return [
        Head(
            looks=[
                (steep * position, steep * is_separator),
                (steep * one, -steep * position),  # 0 for `<s>`, where positions begin
                (one, -midway * is_separator - never * is_word),
            ],
            brings=[(is_separator, raise_flag(IN_DOCUMENT))],
        )
    ]


def is_it_there() -> list[Head]:
    """Layer 2: is there a copy of me in the document?

    A token looks at its copies, which include itself, and at those in the document before any
    other. It brings back whether the copy is in the document. Each of the four heads compares
    its share of the code and raises FOUND by a quarter.
    """
    hidden = readings(RERANKER_WIDTH)
    one, in_document = hidden[-1], hidden[IN_DOCUMENT]
    # Copies score 2 · 60 and chance likenesses rarely half of it, so a preference of ±8 for the
    # document decides between copies and never makes a copy of what is none.
    sharp, preference = 2.0, 8.0
    return [
        Head(
            looks=[
                *((sharp * code, code) for code in hidden[first : first + CODE_SHARE]),
                (one, preference * in_document),
            ],
            brings=[((in_document + one) / 8, raise_flag(FOUND))],
        )
        for first in range(0, RARITY, CODE_SHARE)
    ]


def how_much_of_it() -> list[Head]:
    """Layer 3: how much of the query is there?

    Every token, of which only `<s>` matters, looks at the words of the query, the rarer the more,
    and brings back the share that was found. Its own FOUND, down until now, ends between -1 for
    nothing and 1 for all of them.
    """
    hidden = readings(RERANKER_WIDTH)
    one, rarity, found = hidden[-1], hidden[RARITY], hidden[FOUND]
    not_the_query = hidden[IS_FIRST] + hidden[IS_SEPARATOR] + hidden[IN_DOCUMENT]  # -3 in it
    never = 16.0
    return [
        Head(
            looks=[(one, RARITY_WEIGHT * rarity - never * not_the_query)],
            brings=[((found + one) / 2, raise_flag(FOUND))],
        )
    ]


def classifier() -> Weights:
    """8 · tanh(FOUND) of the first token: logits from -6 to 6, as those of the real model."""
    hidden = readings(RERANKER_WIDTH)
    dense = torch.zeros(RERANKER_WIDTH, RERANKER_WIDTH + 1)
    dense[0] = hidden[FOUND]
    out_proj = 8 * hidden[:1]
    return {
        **linear("classifier.dense", dense),
        **linear("classifier.out_proj", out_proj),
    }


# Files ---------------------------------------------------------------------------------------


def write_shared(folder: Path, tokenizer: Tokenizer, config: dict[str, object]) -> None:
    """What both folders have: the configuration and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "special_tokens_map.json", special_tokens_map())
    write_json(
        folder / "tokenizer_config.json",
        {
            **special_tokens_map(),
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 8192,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def special_tokens_map() -> dict[str, object]:
    return {
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "mask_token": "<mask>",
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
    }


def embedder_config(vocabulary_size: int) -> dict[str, object]:
    return {
        **config("XLMRobertaModel", vocabulary_size),
        "hidden_size": EMBEDDER_WIDTH,
        "num_attention_heads": EMBEDDER_WIDTH // HEAD_WIDTH,
        "num_hidden_layers": 1,
    }


def reranker_config(vocabulary_size: int) -> dict[str, object]:
    return {
        **config("XLMRobertaForSequenceClassification", vocabulary_size),
        "hidden_size": RERANKER_WIDTH,
        "num_attention_heads": RERANKER_WIDTH // HEAD_WIDTH,
        "num_hidden_layers": 3,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }


def config(architecture: str, vocabulary_size: int) -> dict[str, object]:
    return {
        "architectures": [architecture],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": FIRST_SPECIALS.index("<s>"),
        "classifier_dropout": None,
        "eos_token_id": FIRST_SPECIALS.index("</s>"),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "intermediate_size": FEED_FORWARD,
        "layer_norm_eps": LAYER_NORM_EPS,
        "max_position_embeddings": POSITIONS,
        "model_type": "xlm-roberta",
        "output_past": True,
        "pad_token_id": FIRST_SPECIALS.index("<pad>"),
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "type_vocab_size": 1,
        "use_cache": True,
        "vocab_size": vocabulary_size,
    }


def sentence_transformers_modules() -> list[dict[str, object]]:
    names = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(names.items())
    ]


def first_token_pooling() -> dict[str, object]:
    return {
        "word_embedding_dimension": EMBEDDER_WIDTH,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
