"""Vectors as the numbers of a reply: floats, integers or bits; lists or base64."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .requests import Dtype, EncodingFormat

Array = npt.NDArray[np.float32]
DECIMALS = 7  # of floats in a list


def to_numbers(array: Array, encoding_format: EncodingFormat, dtype: Dtype) -> list[Any] | str:
    """Return an array [D] or [t − 1, D] as nested lists of numbers or as base64."""
    is_float = dtype in ("float32", "float16")
    if encoding_format == "base64":
        encoded = (
            array.astype(np.dtype(dtype).newbyteorder("<")) if is_float else quantize(array, dtype)
        )
        return base64.b64encode(encoded.tobytes()).decode("ascii")
    # Floats in fp64: rounded in fp32, a number would be printed with fp32's own digits.
    rounded = np.round(array.astype(np.float64), DECIMALS) if is_float else quantize(array, dtype)
    numbers: list[Any] = rounded.tolist()
    return numbers


def from_base64(vectors: Sequence[str]) -> Array:
    """Return the vectors [N, D] of a reply in base64 of float32."""
    return np.stack([np.frombuffer(base64.b64decode(vector), "<f4") for vector in vectors])


def quantize(vectors: Array, dtype: Dtype) -> npt.NDArray[Any]:
    """Return vectors [.., D] as int8 or uint8 [.., D], or as binary or ubinary [.., ⌈D / 8⌉].

    int8 is `round(x · 127 / max|x|)` of each vector, uint8 is int8 + 128: cosines stay, dot
    products do not. ubinary is `packbits(x > 0)`, binary the same minus 128, as in
    sentence-transformers (`quantize_embeddings`) and Cohere's API.
    """
    if dtype in ("binary", "ubinary"):
        bits: npt.NDArray[Any] = np.packbits(vectors > 0, axis=-1)
        return bits if dtype == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    integers: npt.NDArray[Any] = np.rint(vectors * (127 / np.maximum(largest, np.float32(1e-30))))
    return integers.astype(np.int8) if dtype == "int8" else (integers + 128).astype(np.uint8)
