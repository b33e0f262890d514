"""Vectors as integers and bits."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sentence_transformers import quantize_embeddings

from bge_worker.serving.vectors import from_base64, quantize, to_numbers

VECTORS = arrays(np.float32, (3, 24), elements=st.floats(-1, 1, width=32))


@given(VECTORS)
def test_int8_is_scaled_by_each_vectors_largest_number(vectors: np.ndarray) -> None:
    integers = quantize(vectors, "int8")
    assert integers.dtype == np.int8
    for vector, row in zip(vectors, integers, strict=True):
        if (largest := np.abs(vector).max()) > 1e-20:
            np.testing.assert_allclose(row, vector * 127 / largest, atol=0.5001)
    assert (quantize(vectors, "uint8").astype(int) == integers.astype(int) + 128).all()


@given(VECTORS)
def test_a_bit_is_the_sign_of_a_dimension(vectors: np.ndarray) -> None:
    bits = quantize(vectors, "ubinary")
    assert (np.unpackbits(bits, axis=-1) == (vectors > 0)).all()
    signed = quantize(vectors, "binary")
    assert signed.dtype == np.int8
    assert (signed.astype(int) == bits.astype(int) - 128).all()


@pytest.mark.parametrize("dtype", ["binary", "ubinary"])
def test_bits_equal_sentence_transformers(dtype: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 1024)).astype(np.float32)
    expected = quantize_embeddings(vectors, precision=dtype)
    bits = quantize(vectors, dtype)  # type: ignore[arg-type]
    assert bits.dtype == expected.dtype
    np.testing.assert_array_equal(bits, expected)


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8", "binary", "ubinary"])
def test_base64_holds_the_numbers_of_the_list(dtype: str) -> None:
    vector = np.linspace(-1, 1, 24, dtype=np.float32)
    numbers = to_numbers(vector, "float", dtype)  # type: ignore[arg-type]
    data = to_numbers(vector, "base64", dtype)  # type: ignore[arg-type]
    wire = {"float32": "<f4", "int8": "i1", "binary": "i1"}.get(dtype, "u1")
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(str(data)), wire), numbers, atol=1e-6)
    if dtype == "float32":
        np.testing.assert_array_equal(from_base64([str(data)]), [vector])
