"""The packed engine against FlagEmbedding on the original checkpoint, in fp32.

Four shapes of random weights, 200 texts (60 for the widest, unless --long) from 1 token to 8,192 in
many scripts: every output within 1e-4, sparse index sets and token ids equal, cut or not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from FlagEmbedding import BGEM3FlagModel, FlagReranker
from FlagEmbedding.utils.tokenizer_compat import prepare_for_model_compat

from bge_builder.convert import convert
from bge_worker.engine.engine import PackedEngine
from bge_worker.engine.outputs import Embedding, Outputs
from bge_worker.engine.reference import restore_prepare_for_model
from checkpoints import Shape, write_pair
from conftest import MODELS, settings_in

SHAPES = {
    "full width": Shape(1024, 16, 4096, layers=2),
    "width 384": Shape(384, 12, 1536, layers=3),
    "odd sizes": Shape(132, 3, 260, layers=2, vocab_size=4099, positions=8201),
    "wild biases and norms": Shape(256, 4, 1024, layers=3, wild=True),
}
EVERYTHING = Outputs.DENSE | Outputs.SPARSE | Outputs.COLBERT
TOLERANCE = 1e-4
# The longest text of each shape; FlagEmbedding takes a minute for 8,192 tokens of a wide one, so
# `make test` leaves those to `make parity`, which gives every shape the full length.
LONGEST = {"full width": 256, "width 384": 512, "wild biases and norms": 2048}
QUERY = "Как градиентный спуск находит минимум? 梯度下降 🙂"
ODD = [
    "a",
    "é e\u0301 ﬁ ½ ＡＢＣ",
    "👩‍👩‍👧‍👦 🇷🇺 🙂",
    "z̷̢͙̎a̶̧͐l̴͇̿g̵͓̈́o̶̠͝",
    "你好，世界。机器学习",
    "tabs\tand\nlines  and   spaces ",
    "\u200bzero width\ufeff",
    "a <pad> spelt out </s> and <s> and <unk> and <mask>",
    "العربية हिन्दी 한국어",
    "\u0000 control \u0007",
]


def texts_of(corpus: list[dict[str, str]]) -> list[str]:
    """200 texts: the odd ones, lengths from one word to some hundred, three long ones."""
    draw = random.Random(0)
    words = [*" ".join(row["text"] for row in corpus).split(), "学习", "🙂", "naïve", "e\u0301"]
    lengths = [round(draw.lognormvariate(2.4, 1.2)) for _ in range(200 - len(ODD) - 3)]
    drawn = [" ".join(draw.choices(words, k=min(200, max(1, n)))) for n in lengths]
    return [*ODD, *drawn, *(" ".join(draw.choices(words, k=n)) for n in (900, 2500, 9000))]


@dataclass(frozen=True)
class Oracle:
    """FlagEmbedding, its calls grouped so that a long text does not pad the short ones."""

    embedder: BGEM3FlagModel
    reranker: FlagReranker

    @staticmethod
    def by_length(texts: Sequence[str]) -> list[list[int]]:
        short = [i for i, text in enumerate(texts) if len(text) < 3000]
        return [short, *([i] for i in range(len(texts)) if i not in set(short))]

    def embed(self, texts: Sequence[str], max_length: int) -> list[dict[str, Any]]:
        rows: dict[int, dict[str, Any]] = {}
        for group in self.by_length(texts):
            answer = self.embedder.encode(
                [texts[i] for i in group],
                batch_size=16,
                max_length=max_length,
                return_dense=True,
                return_sparse=True,
                return_colbert_vecs=True,
            )
            for row, i in enumerate(group):
                rows[i] = {key: values[row] for key, values in answer.items()}
        return [rows[i] for i in range(len(texts))]

    def score(self, texts: Sequence[str], max_length: int) -> list[float]:
        scores: dict[int, float] = {}
        for group in self.by_length(texts):
            pairs = [[QUERY, texts[i]] for i in group]
            logits = self.reranker.compute_score(pairs, batch_size=16, max_length=max_length)
            scores |= zip(group, logits, strict=True)
        return [scores[i] for i in range(len(texts))]


@dataclass(frozen=True)
class Bench:
    """One shape: our engine, the oracle and the texts, each cut to `longest` tokens."""

    longest: int
    engine: PackedEngine
    oracle: Oracle
    texts: list[str]


@pytest.fixture(scope="module", params=SHAPES, ids=lambda name: name.replace(" ", "-"))
def bench(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    corpus: list[dict[str, str]],
) -> Bench:
    folder = tmp_path_factory.mktemp("parity")
    texts = texts_of(corpus)
    write_pair(folder / "hub", SHAPES[request.param], [*texts[len(ODD) :], *ODD[:5]])
    for model in MODELS:
        convert(folder / "hub" / model, folder / model, dtype="float32")
    longest = 8192
    if not request.config.getoption("--long"):
        longest = LONGEST.get(request.param, 8192)
        texts = texts if request.param != "full width" else [*texts[:60], *texts[-3:]]
    return Bench(longest, PackedEngine(settings_in(folder)), load_oracle(folder / "hub"), texts)


def load_oracle(folder: Path) -> Oracle:
    embedder = BGEM3FlagModel(str(folder / "bge-m3"), use_fp16=False, devices="cpu")
    reranker = FlagReranker(str(folder / "bge-reranker-v2-m3"), use_fp16=False, devices="cpu")
    restore_prepare_for_model(reranker.tokenizer)
    return Oracle(embedder, reranker)


def embed(
    engine: PackedEngine, texts: Sequence[str], outputs: Outputs, max_length: int = 8192
) -> list[Embedding]:
    """In micro-batches of twenty texts, the long ones among the short."""
    results: list[Any] = []
    for start in range(0, len(texts), 20):
        results += engine.run(outputs, engine.encode_texts(texts[start : start + 20], max_length))
    return results


def score(engine: PackedEngine, texts: Sequence[str], max_length: int) -> list[float]:
    results: list[Any] = []
    for start in range(0, len(texts), 20):
        encoded = engine.encode_pairs(QUERY, texts[start : start + 20], max_length)
        results += engine.run(Outputs.RELEVANCE, encoded)
    return results


def test_dense_sparse_and_colbert_equal_flagembedding(bench: Bench) -> None:
    assert len(bench.texts) >= 63
    ours = embed(bench.engine, bench.texts, EVERYTHING, bench.longest)
    cls_only = embed(bench.engine, bench.texts, Outputs.DENSE, bench.longest)
    theirs = bench.oracle.embed(bench.texts, bench.longest)
    lengths = [len(one.colbert) + 1 for one in ours if one.colbert is not None]
    assert min(lengths) == 3  # a single token between <s> and </s>
    assert max(lengths) == bench.longest
    for one, alone, other in zip(ours, cls_only, theirs, strict=True):
        close = partial(np.testing.assert_allclose, rtol=0, atol=TOLERANCE)
        close(one.dense, other["dense_vecs"])
        close(alone.dense, other["dense_vecs"])
        close(one.colbert, other["colbert_vecs"])
        weights = {int(token): weight for token, weight in other["lexical_weights"].items()}
        assert one.sparse is not None
        assert one.sparse.indices.tolist() == sorted(weights)
        close(one.sparse.values, [weights[token] for token in sorted(weights)])


@pytest.mark.parametrize("cut", [False, True])
def test_relevance_equals_flagembedding(bench: Bench, cut: bool) -> None:
    texts, max_length = (bench.texts[:60], 48) if cut else (bench.texts, bench.longest)
    ours, theirs = score(bench.engine, texts, max_length), bench.oracle.score(texts, max_length)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("max_length", [3, 17, 100, 8192])
def test_token_ids_equal_flagembedding_cut_or_not(bench: Bench, max_length: int) -> None:
    tokenizer = bench.oracle.embedder.tokenizer
    ours = bench.engine.encode_texts(bench.texts, max_length)
    theirs = tokenizer(bench.texts, truncation=True, max_length=max_length)["input_ids"]
    assert [one.ids for one in ours] == theirs
    untruncated = tokenizer(bench.texts)["input_ids"]
    assert [one.untruncated_length for one in ours] == [len(ids) for ids in untruncated]
    assert [one.truncated for one in ours] == [len(ids) > max_length for ids in untruncated]


@pytest.mark.parametrize("max_length", [17, 100, 1024])
def test_pairs_equal_flagembedding_cut_or_not(bench: Bench, max_length: int) -> None:
    """Against FlagEmbedding as it comes, wherever its detour keeps its own ids.

    Under transformers 5 it decodes query and document and encodes them again; where that changes
    the ids (beside `<unk>`, at some cuts) the rule is what it does under transformers 4: join.
    """
    query_text = "Как градиентный спуск находит минимум?"
    tokenizer = bench.oracle.reranker.tokenizer
    restored = tokenizer.__dict__.pop("prepare_for_model")
    try:
        compared = 0
        for text in bench.texts:
            (ours,) = bench.engine.encode_pairs(query_text, [text], max_length)
            query, document = (
                tokenizer(t, add_special_tokens=False, max_length=limit, truncation=True)[
                    "input_ids"
                ]
                for t, limit in ((query_text, max_length * 3 // 4), (text, max_length))
            )
            assert ours.ids == restored(query, document, max_length=max_length)["input_ids"]
            if all(
                ids == plain_ids(tokenizer, decode(tokenizer, ids)) for ids in (query, document)
            ):
                compared += 1
                assert (
                    ours.ids
                    == prepare_for_model_compat(
                        tokenizer, query, document, truncation="only_second", max_length=max_length
                    )["input_ids"]
                )
        assert compared > 0.75 * len(bench.texts)
    finally:
        tokenizer.prepare_for_model = restored


def decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_text_s_outputs_do_not_depend_on_its_neighbours(bench: Bench) -> None:
    texts = bench.texts[:60]
    together = embed(bench.engine, texts, EVERYTHING)
    order = random.Random(1).sample(range(60), 60)
    shuffled = dict(
        zip(order, embed(bench.engine, [texts[i] for i in order], EVERYTHING), strict=True)
    )
    for i, text in enumerate(texts):
        (alone,) = embed(bench.engine, [text], EVERYTHING)
        for other in (together[i], shuffled[i]):
            close = partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
            close(other.dense, alone.dense)
            close(other.colbert, alone.colbert)
            assert alone.sparse is not None
            assert other.sparse is not None
            assert other.sparse.indices.tolist() == alone.sparse.indices.tolist()
            close(other.sparse.values, alone.sparse.values)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ),
    ],
)
def test_half_precision_stays_close_to_single(
    device: Any, tmp_path: Path, corpus: list[dict[str, str]]
) -> None:
    """Cosine above 0.9999 for every vector, in whatever way this device computes in fp16."""
    texts = texts_of(corpus)[:60]
    write_pair(tmp_path / "hub", SHAPES["width 384"], texts)
    for model in MODELS:
        convert(tmp_path / "hub" / model, tmp_path / model, dtype="float32")
    single = PackedEngine(settings_in(tmp_path, device="cpu", dtype="float32"))
    half = PackedEngine(settings_in(tmp_path, device=device, dtype="float16"))
    pairs = zip(*(embed(engine, texts, EVERYTHING) for engine in (single, half)), strict=True)
    for one, other in pairs:
        assert one.dense is not None
        assert one.colbert is not None
        assert one.dense @ other.dense > 0.9999
        assert (one.colbert * other.colbert).sum(axis=1).min() > 0.9999
    logits = [score(engine, texts, 512) for engine in (single, half)]
    np.testing.assert_allclose(*logits, rtol=0, atol=0.02)
