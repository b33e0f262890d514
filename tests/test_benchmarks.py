"""The benchmarks' own arithmetic: what they say of us must not rest on a slip of theirs."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

import gpus
import tables
from bge_worker.checkpoint import Manifest
from bge_worker.engine import Engine
from bge_worker.schema import EmbedRequest, Outputs, RerankRequest
from compare import OURS, Contestant, agree
from conftest import ROOT
from results import merged
from saturation import arrivals
from workload import Workload

TEXTS = ["one", "two words", "a text of a few more words than the others have"]
THREE = Outputs.DENSE | Outputs.SPARSE | Outputs.COLBERT


@pytest.mark.parametrize(
    ("kind", "request_"),
    [
        ("dense", EmbedRequest(TEXTS)),
        ("all", EmbedRequest(TEXTS, outputs=THREE)),
        ("rerank", RerankRequest("a query", TEXTS)),
    ],
)
def test_a_workload_s_arithmetic_is_what_the_forward_does(
    kind: str,
    request_: EmbedRequest | RerankRequest,
    packed: Engine,
    runtimes: Callable[[str], Path],
) -> None:
    encoded = packed.encode(request_, 0, len(TEXTS))
    with FlopCounterMode(display=False) as counted:
        packed.run(request_.outputs, encoded)
    model = "bge-reranker-v2-m3" if kind == "rerank" else "bge-m3"
    shape = Manifest.read(runtimes("packed") / model).config
    workload = Workload("", "", kind, TEXTS, [len(text.ids) for text in encoded])
    # The heads of single rows and of sparse are left out of the formula: a part in a hundred.
    assert counted.get_total_flops() == pytest.approx(workload.flops(shape), rel=0.02)


@pytest.mark.parametrize("name", tables.PAGES)
def test_the_tables_are_those_of_the_results(name: str) -> None:
    page = (ROOT / name).read_text("utf-8")
    assert tables.BLOCK.search(page)
    assert tables.rewritten(page) == page, "python benchmarks/tables.py"


def test_a_run_replaces_what_it_measured_and_leaves_the_rest() -> None:
    before = {"small": {"a": {"date": "1", "x": 1, "y": 1}, "b": {"date": "1"}}}
    found = {"small": {"a": {"date": "2", "x": 2}}, "full": {"a": {"date": "2"}}}
    assert merged(before, found) == {
        "small": {"a": {"date": "2", "x": 2}, "b": {"date": "1"}},
        "full": {"a": {"date": "2"}},
    }


def test_queries_come_at_random_at_the_rate_that_is_asked_for() -> None:
    moments = list(arrivals(random.Random(0), rate=200, seconds=50))
    gaps = np.array([later - earlier for earlier, later in pairwise(moments)])
    assert len(moments) == pytest.approx(10_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential


class TestAPeer:
    workload = Workload("mixed", "", "dense", TEXTS, [3, 4, 13])

    def peers(self, name: str) -> list[Contestant]:
        return [Contestant(OURS, Path()), Contestant(name, Path())]

    def test_that_computes_something_else_ends_the_run(self) -> None:
        rows = {OURS: np.zeros((3, 4)), "Infinity": np.full((3, 4), 0.1)}
        with pytest.raises(SystemExit, match=r"Infinity differs by 0\.1"):
            agree(self.workload, rows, self.peers("Infinity"))

    def test_that_gives_nan_ends_the_run(self) -> None:
        rows = {OURS: np.zeros((3, 4)), "Infinity": np.full((3, 4), np.nan)}
        with pytest.raises(SystemExit):
            agree(self.workload, rows, self.peers("Infinity"))

    def test_of_another_precision_says_how_far_it_is_apart(self) -> None:
        peers = self.peers("ONNX Runtime int8")
        rows = {OURS: np.zeros((3, 4)), peers[1].name: np.full((3, 4), 0.1)}
        agree(self.workload, rows, peers)
        assert peers[1].difference == pytest.approx(0.1)


def test_a_projection_is_the_share_of_the_published_peak() -> None:
    share = gpus.shares()
    l4 = next(row for row in gpus.projection() if row["gpu"].startswith("L4"))
    # bge-m3: 302 M parameters in its layers, two operations each; attention and the short last
    # layer move that by less than a tenth.
    plain = 121e12 * share.chunks / (2 * 302e6)
    assert l4["chunks_tokens_per_second"] == pytest.approx(plain, rel=0.1)
    assert l4["dollars_per_million"] == pytest.approx(0.00019 / l4["mixed_tokens_per_second"] * 1e6)
