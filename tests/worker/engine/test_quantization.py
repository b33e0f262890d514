"""int8 products against fp32, and folders of int8 weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bge_builder.convert import convert
from bge_builder.errors import ConvertError
from bge_worker.engine.engine import PackedEngine, load_engine
from bge_worker.engine.outputs import Outputs
from bge_worker.engine.quantization import (
    LEVELS,
    SHIFT,
    Int8Linear,
    Int8ResidualLinear,
    Int8Weight,
    quantize_rows,
    quantize_weight,
)
from bge_worker.errors import StartError
from checkpoints import Shape, write_pair
from conftest import MODELS, settings_in
from fakes.engine import ALL_VECTORS

SHAPE = Shape(width=128, heads=4, feed_forward=256, layers=3, vocab_size=4000)
TEXTS = ["градиентный спуск", "море", "a transaction " * 40, "суша и море " * 9]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 9), st.floats(1e-20, 1e20))
def test_a_quantised_row_is_within_half_a_step(
    rows: int, columns: int, seed: int, size: float
) -> None:
    x = random(rows, columns, seed=seed) * size
    quantized, scales = quantize_rows(x)
    restored = (quantized.float() - SHIFT) * scales
    assert ((restored - x).abs() <= scales * 0.5001).all()
    assert quantized.min() >= SHIFT - LEVELS


@pytest.mark.parametrize("rows", [1, 7, 130])
def test_products_are_close_to_those_in_fp32(rows: int) -> None:
    x, weight, bias, residual = random(rows, 96), random(64, 96), random(64), random(rows, 64)
    x[:, 5] *= 30  # an outlier, as models have
    int8 = Int8Weight.of(*quantize_weight(weight))
    expected = x.double() @ weight.double().t()
    tolerance = 0.03 * float(expected.norm())
    assert float((Int8Linear(int8, torch.ones(96), bias)(x) - bias - expected).norm()) < tolerance
    result = Int8ResidualLinear(int8).add_to(residual.clone(), x)
    assert float((result - residual - expected).norm()) < tolerance


def test_rows_of_zeros_and_numbers_that_are_not_finite() -> None:
    int8 = Int8Linear(
        Int8Weight.of(*quantize_weight(random(8, 16))), torch.ones(16), torch.zeros(8)
    )
    x = random(4, 16)
    x[1], x[2, 3], x[3, 4] = 0, float("nan"), float("inf")
    result = int8(x)
    assert torch.equal(result[0], int8(x[:1])[0])
    assert (result[1] == 0).all()
    assert not torch.isfinite(result[2:]).all(dim=1).any()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, corpus: list[dict[str, str]]) -> Path:
    """Random models in `float32` and `int8`."""
    folder = tmp_path_factory.mktemp("int8")
    write_pair(folder / "hub", SHAPE, [row["text"] for row in corpus])
    for dtype in ("float32", "int8"):
        for model in MODELS:
            convert(folder / "hub" / model, folder / dtype / model, dtype=dtype)
    return folder


@pytest.fixture(scope="module")
def engines(folders: Path) -> dict[str, PackedEngine]:
    return {dtype: PackedEngine(settings_in(folders / dtype)) for dtype in ("float32", "int8")}


def test_outputs_in_int8_are_close_to_those_in_fp32(engines: dict[str, PackedEngine]) -> None:
    encoded = engines["int8"].encode_texts(TEXTS, 8192)
    results, references = (engines[name].run(ALL_VECTORS, encoded) for name in ("int8", "float32"))
    for result, reference in zip(results, references, strict=True):
        assert float(result.dense @ reference.dense) > 0.998
        assert float((result.colbert * reference.colbert).sum(axis=1).min()) > 0.995
    pairs = engines["int8"].encode_pairs(["море"], TEXTS, 1024)
    scores, expected = (engines[n].run(Outputs.RELEVANCE, pairs) for n in ("int8", "float32"))
    assert scores == pytest.approx(expected, abs=0.1)


def test_a_text_does_not_depend_on_its_neighbours(engines: dict[str, PackedEngine]) -> None:
    encoded = engines["int8"].encode_texts(TEXTS, 8192)
    for text, together in zip(encoded, engines["int8"].run(Outputs.DENSE, encoded), strict=True):
        (alone,) = engines["int8"].run(Outputs.DENSE, [text])
        np.testing.assert_allclose(alone.dense, together.dense, atol=1e-6)


def test_a_long_text_is_close_to_fp32_and_computed_alike_each_time(
    engines: dict[str, PackedEngine],
) -> None:
    encoded = engines["int8"].encode_texts(["градиентный спуск " * 5000], 1500)
    (reference,) = engines["float32"].run(Outputs.DENSE, encoded)
    (result,), (again,) = (engines["int8"].run(Outputs.DENSE, encoded) for _ in range(2))
    assert float(result.dense @ reference.dense) > 0.998
    np.testing.assert_array_equal(result.dense, again.dense)


def test_int8_has_a_fingerprint_of_its_own(engines: dict[str, PackedEngine]) -> None:
    int8, float32 = (engines[name].models["embed"].fingerprint for name in ("int8", "float32"))
    assert int8 != float32
    assert engines["int8"].runtime.dtype == "int8"


def test_folders_and_settings_of_different_dtypes_are_refused(folders: Path) -> None:
    with pytest.raises(StartError, match=r"\(`BGE_DTYPE`\) is int8, and .* is not: make it with `"):
        PackedEngine(settings_in(folders / "float32", dtype="int8"))
    with pytest.raises(StartError, match=r"\(`BGE_DTYPE`\) is float32, and .* is in int8"):
        PackedEngine(settings_in(folders / "int8", dtype="float32"))
    mixed = settings_in(folders / "int8", rerank_model=folders / "float32" / MODELS[1])
    with pytest.raises(StartError, match=r"is in int8 and .* is not"):
        PackedEngine(mixed)


def test_flagembedding_has_no_int8(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="int8 runs on the engine packed alone"):
        convert(folders / "hub" / MODELS[0], tmp_path, dtype="int8", engine="flagembedding")
    settings = settings_in(tmp_path, engine="flagembedding", dtype="int8")
    with pytest.raises(StartError, match="`BGE_DTYPE` is int8, which `BGE_ENGINE` flagembedding"):
        load_engine(settings)


def test_a_processor_without_int8_products_is_warned_of(
    folders: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    PackedEngine(settings_in(folders / "int8"))
    assert "this processor has no int8 products (VNNI)" in caplog.text
