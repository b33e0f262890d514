"""What the models compute for a text. Imports no torch: requests are read before it."""

from __future__ import annotations

from enum import Flag, auto
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]


class Outputs(Flag):
    """The outputs a request wants. Texts of equal outputs may share a micro-batch."""

    DENSE = auto()
    RAW = auto()  # with DENSE: the vector before normalisation
    SPARSE = auto()
    COLBERT = auto()
    RELEVANCE = auto()


class SparseVector(NamedTuple):
    """`indices` [K] int64 token ids, ascending and unique; `values` [K] float32, above zero."""

    indices: npt.NDArray[np.int64]
    values: Array


class Embedding(NamedTuple):
    """The requested outputs of one text: dense [D], sparse, ColBERT [t − 1, D]; float32."""

    dense: Array | None
    sparse: SparseVector | None
    colbert: Array | None


Result = Embedding | float  # a float is the logit of a pair
