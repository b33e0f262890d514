"""The miniature computes lexical overlap in all four kinds of scores."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bge_builder import miniature
from bge_builder.vocabulary import CORPUS
from bge_worker.engine.engine import Engine
from bge_worker.engine.outputs import Outputs, SparseVector
from bge_worker.serving.requests import DEFAULT_PAIR_LENGTH, MAX_LENGTH

BUILDER = Path(miniature.__file__).parent
EXAMPLES = json.loads((BUILDER / "examples.json").read_text(encoding="utf-8"))
PASSAGES = [json.loads(line)["text"] for line in CORPUS.read_text("utf-8").splitlines()]
MODES = ["dense", "sparse", "colbert", "relevance"]

Vectors = npt.NDArray[np.float32]


class Scores:
    """Scores of all queries with all documents, in one of the four modes: [Q, N]."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, mode: str, queries: list[str], documents: list[str]) -> Vectors:
        if mode == "relevance":
            return np.array([self.logits(query, documents) for query in queries])
        match = {"dense": np.dot, "sparse": lexical_match, "colbert": max_sim}[mode]
        query_vectors, document_vectors = self.vectors(mode, queries), self.vectors(mode, documents)
        return np.array([[match(query, d) for d in document_vectors] for query in query_vectors])

    def logits(self, query: str, documents: list[str]) -> list[Any]:
        pairs = self.engine.encode_pairs([query], documents, DEFAULT_PAIR_LENGTH)
        return list(self.engine.run(Outputs.RELEVANCE, pairs))

    def vectors(self, mode: str, texts: list[str]) -> list[Any]:
        encoded = self.engine.encode_texts(texts, MAX_LENGTH)
        return [getattr(result, mode) for result in self.engine.run(Outputs[mode.upper()], encoded)]


def lexical_match(query: SparseVector, document: SparseVector) -> float:
    weights = dict(zip(*document, strict=True))
    return float(sum(w * weights.get(token, 0.0) for token, w in zip(*query, strict=True)))


def max_sim(query: Vectors, document: Vectors) -> float:  # [q, D], [d, D]
    return float((query @ document.T).max(axis=1).mean())


@pytest.fixture(scope="module")
def scores(packed: Engine) -> Scores:
    return Scores(packed)


def contents(folder: Path) -> dict[Path, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_every_build_writes_the_same_bytes(checkpoints: Path, tmp_path: Path) -> None:
    miniature.build(tmp_path)
    assert contents(tmp_path) == contents(checkpoints)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_best_document_ranks_first(scores: Scores, number: int, mode: str) -> None:
    example = EXAMPLES[number]
    row = scores(mode, [example["query"]], example["documents"])[0]
    assert row.argmax() == example["best"], (example["query"], row)


def test_relevance_grows_with_the_words_found(scores: Scores) -> None:
    words = ["градиент", "catalyst", "фотосинтез", "constitution"]
    documents = [" ".join(["рекурсия", *words[:correct]]) for correct in range(len(words) + 1)]
    row = scores("relevance", [" ".join(words)], documents)[0]
    assert (np.diff(row) > 0).all()
    assert row[0] == pytest.approx(-6.1, abs=0.1)
    assert row[-1] == pytest.approx(6.1, abs=0.1)


def random_queries(count: int) -> dict[int, list[tuple[int, str]]]:
    """For each group of ten passages, return passage indices and a few words of the passages."""
    rng = random.Random(0)
    queries = defaultdict(list)
    for _ in range(count):
        group, index = rng.randrange(len(PASSAGES) // 10), rng.randrange(10)
        words = re.findall(r"\w+", PASSAGES[10 * group + index])
        queries[group].append((index, " ".join(rng.sample(words, rng.randint(3, 5)))))
    return queries


@pytest.mark.parametrize("mode", MODES)
def test_a_few_words_find_their_passage(scores: Scores, mode: str) -> None:
    correct = 0
    for group, cases in random_queries(100).items():
        expected, queries = zip(*cases, strict=True)
        matrix = scores(mode, list(queries), PASSAGES[10 * group : 10 * group + 10])
        correct += int((matrix.argmax(axis=1) == expected).sum())
    print(f"{mode}: {correct} of 100")
    assert correct >= 95
