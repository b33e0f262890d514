"""Pooling against Ward's method written out."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from bge_retrieval.bulk.pooling import pool


def unit(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def cost(left: NDArray[np.floating], right: NDArray[np.floating]) -> float:
    """By how much the sum of squared distances to the mean grows if two clusters are merged."""
    size = len(left) * len(right) / (len(left) + len(right))
    return float(size * np.sum((left.mean(axis=0) - right.mean(axis=0)) ** 2))


def brute_force(vectors: NDArray[np.floating], count: int) -> NDArray[np.floating]:
    clusters = [[index] for index in range(len(vectors))]
    while len(clusters) > count:
        left, right = min(
            combinations(clusters, 2), key=lambda pair: cost(vectors[pair[0]], vectors[pair[1]])
        )
        clusters = [c for c in clusters if c not in (left, right)] + [left + right]
    clusters.sort(key=min)
    return unit(np.stack([vectors[members].mean(axis=0) for members in clusters]))


@pytest.mark.parametrize(("tokens", "factor"), [(12, 2), (13, 3), (9, 4), (5, 9), (1, 2)])
def test_pooled_vectors_are_means_of_ward_s_clusters(tokens: int, factor: int) -> None:
    vectors = unit(np.random.default_rng(tokens).standard_normal((tokens, 6)))
    pooled = pool(vectors, factor)
    np.testing.assert_allclose(pooled, brute_force(vectors, -(-tokens // factor)), atol=1e-6)


def test_equal_vectors_become_one() -> None:
    vectors = unit(np.random.default_rng(0).standard_normal((3, 8)))[[0, 1, 0, 1, 0, 2]]
    np.testing.assert_allclose(pool(vectors, 2), vectors[[0, 1, 5]], atol=1e-6)


@pytest.mark.parametrize("tokens", [0, 4])
def test_a_factor_of_one_pools_nothing(tokens: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((tokens, 8)).astype(np.float16)
    assert pool(vectors, 1) is vectors
