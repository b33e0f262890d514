"""The miniature's vocabulary and tokenizer, derived from corpus.jsonl.

    words → stems and endings → a Unigram tokenizer like XLM-RoBERTa's

Inflected forms share a stem, and the score of a piece tells its rarity.
"""

import json
import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

CORPUS = Path(__file__).with_name("corpus.jsonl")

FIRST_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]  # ids 0 to 3, as in XLM-RoBERTa
LAST_SPECIAL = "<mask>"
SPECIALS = [*FIRST_SPECIALS, LAST_SPECIAL]
WORD_START = "▁"

Piece = tuple[str, float]  # text, logarithm of its probability


def read_corpus() -> str:
    """Return all titles and passages as one text, normalized as by the tokenizer."""
    rows = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    text = "\n".join(f"{row['title']}\n{row['text']}" for row in rows)
    return normalizer().normalize_str(text)


def make_pieces(corpus: str) -> list[Piece]:
    """Return the special tokens and the pieces of the corpus; the index is the token id."""
    words = re.findall(r"(?<!')\b[^\W\d_]+", corpus)  # the s of "Ohm's" is no word
    shared = shared_prefixes(set(words))
    counts: Counter[str] = Counter()
    for word in words:
        stem, ending = split(word, shared)
        counts[WORD_START + stem] += 1
        if ending:
            counts[ending] += 1
    for spelling in alphabet(corpus) | letter_pairs(words):  # to spell other words
        counts[spelling] += 1
    total = counts.total()
    pieces = [(piece, math.log(count / total)) for piece, count in sorted(counts.items())]
    return [*((s, 0.0) for s in FIRST_SPECIALS), *pieces, (LAST_SPECIAL, 0.0)]


def shared_prefixes(words: set[str]) -> set[str]:
    """Return the prefixes of at least four letters that two or more distinct words share."""
    counts = Counter(word[:length] for word in words for length in range(4, len(word) + 1))
    return {prefix for prefix, count in counts.items() if count > 1}


def split(word: str, shared: set[str]) -> tuple[str, str]:
    """Split a word into its stem, the longest shared prefix, and an ending of up to four letters.

    Without such a prefix the stem is the word itself.
    """
    for length in range(len(word), max(4, len(word) - 4) - 1, -1):
        if word[:length] in shared:
            return word[:length], word[length:]
    return word, ""


def alphabet(corpus: str) -> set[str]:
    """Return single characters, so that any text can be spelled; the normalizer lowers capitals."""
    latin = string.ascii_lowercase + string.digits + string.punctuation
    cyrillic = "абвгдеёжзийклмнопрстуфхцчшщъыьэюя"
    return {c for c in latin + cyrillic + corpus if not c.isspace()} | {WORD_START}


def letter_pairs(words: list[str]) -> set[str]:
    """Return pairs of letters: unknown words spelled in pairs are more distinct than in letters."""
    return {word[i : i + 2] for word in words for i in range(len(word) - 1)}


def rarities(pieces: Sequence[Piece]) -> Tensor:  # [V]
    """Return each piece's rarity, from 0 (most common) to 1 (rarest); -1 for special tokens.

    Beginnings of words tell most of what a text is about: an ending counts half, a single character
    not at all.
    """
    scores = [score for text, score in pieces if text not in SPECIALS]
    common, rare = max(scores), min(scores)

    def rarity(text: str, score: float) -> float:
        if text in SPECIALS:
            return -1.0
        share = 0.0 if len(text) == 1 else 1.0 if text.startswith(WORD_START) else 0.5
        return share * (common - score) / (common - rare)

    return torch.tensor([rarity(text, score) for text, score in pieces])


def normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " ")]
    )


def make_tokenizer(pieces: list[Piece]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=FIRST_SPECIALS.index("<unk>")))
    tokenizer.normalizer = normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement=WORD_START, prepend_scheme="always"),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, FIRST_SPECIALS.index(token)) for token in ("<s>", "</s>")],
    )
    tokenizer.decoder = decoders.Metaspace(replacement=WORD_START, prepend_scheme="always")
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer
