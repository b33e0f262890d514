"""Pool the ColBERT vectors of a text: similar vectors become their mean.

Token pooling after Clavié, Chaffin and Adams, "Reducing the Footprint of Multi-Vector Retrieval
with Minimal Performance Impact via Token Pooling" (2024): hierarchical clustering by Ward's method.
Between unit vectors the squared distance is 2 - 2 cos, so Ward's method on them clusters by cosine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def pool(vectors: Floats, factor: int) -> Floats:
    """Return the means of at most ⌈T / factor⌉ clusters of unit vectors [T, D], of length 1.

    A cluster lies where its first vector was. A `factor` of 1 returns the vectors.
    """
    count = -(-len(vectors) // factor)
    if count == len(vectors):
        return vectors
    # Takes a quarter of a second to import: not in every process of a job that pools nothing.
    from scipy.cluster.hierarchy import fcluster, linkage

    exact = vectors.astype(np.float64)
    labels = fcluster(linkage(_distances(exact), "ward"), count, "maxclust")
    _, first, members = np.unique(labels, return_index=True, return_inverse=True)
    sums = np.zeros((len(first), exact.shape[1]))
    np.add.at(sums, members, exact)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    pooled = np.divide(sums, norms, out=exact[first], where=norms > 0)
    in_order: Floats = pooled[np.argsort(first)].astype(vectors.dtype)
    return in_order


def _distances(vectors: Floats) -> Floats:
    """Return the distances of pairs as SciPy's condensed matrix, [T * (T - 1) / 2]."""
    squared = np.maximum(0, 2 - 2 * (vectors @ vectors.T))
    return np.sqrt(squared[np.triu_indices(len(vectors), 1)])
