"""Every output within 1e-4 of FlagEmbedding's on the original checkpoint; equal sparse indices."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from bge_worker.engine.outputs import Outputs
from fakes.engine import ALL_VECTORS

assert_close = partial(np.testing.assert_allclose, rtol=0, atol=1e-4)


def test_dense_sparse_and_colbert_equal_flagembedding(bench: Any) -> None:
    results = bench.embed(bench.texts, ALL_VECTORS, bench.max_length)
    dense_alone = bench.embed(bench.texts, Outputs.DENSE, bench.max_length)
    references = bench.oracle.embed(bench.texts, bench.max_length)
    lengths = [len(result.colbert) + 1 for result in results]
    assert min(lengths) == 3  # a single token between <s> and </s>
    assert max(lengths) == bench.max_length
    for result, dense, reference in zip(results, dense_alone, references, strict=True):
        assert_close(result.dense, reference["dense_vecs"])
        assert_close(dense.dense, reference["dense_vecs"])
        assert_close(result.colbert, reference["colbert_vecs"])
        weights = {int(token): weight for token, weight in reference["lexical_weights"].items()}
        assert result.sparse.indices.tolist() == sorted(weights)
        assert_close(result.sparse.values, [weights[token] for token in sorted(weights)])


@pytest.mark.parametrize("truncated", [False, True])
def test_relevance_equals_flagembedding(bench: Any, truncated: bool) -> None:
    texts, max_length = (bench.texts[:20], 48) if truncated else (bench.texts, bench.max_length)
    assert_close(bench.score(texts, max_length), bench.oracle.score(texts, max_length))
