"""The encoder's parts: what is done differently for speed gives the same numbers."""

from __future__ import annotations

import pytest
import torch

from bge_worker.engine.model import MAX_ROWS_FROM_RIGHT, MIN_ELEMENTS_FROM_RIGHT, Linear


@pytest.mark.parametrize("rows", [1, 2, MAX_ROWS_FROM_RIGHT, MAX_ROWS_FROM_RIGHT + 1])
def test_few_rows_are_multiplied_as_many_are(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1024, MIN_ELEMENTS_FROM_RIGHT // 1024, generator=generator)
    bias = torch.randn(len(weight), generator=generator)
    x = torch.randn(rows, weight.shape[1], generator=generator)
    exact = x.double() @ weight.double().t() + bias.double()
    found = Linear(weight, bias)(x)
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
