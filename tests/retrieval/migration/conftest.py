"""A collection of another model's vectors."""

from __future__ import annotations

from typing import Any

import pytest

from bge_retrieval import Store
from points import make_old


@pytest.fixture
def old(store: Store, passages: list[dict[str, Any]]) -> Store:
    return make_old(store, passages[:30])
