"""The benchmarks' own arithmetic."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

import tables
from bge_builder.convert import convert
from bge_worker.engine.engine import PackedEngine
from bge_worker.engine.outputs import Outputs
from bge_worker.settings import Settings
from checkpoints import Shape, write_pair
from compare import Process, check_agreement
from conftest import MODELS, settings_in
from contestants import OURS
from projection import Shares, project
from results import merge
from serving import arrivals
from trained import write_trained
from workload import Workload, corpus

SHAPE = Shape(width=64, heads=4, feed_forward=128, layers=3, vocab_size=4000)
TEXTS = ["слово " * count for count in (3, 90, 400)]  # attention is a third of the work
ALL_OUTPUTS = Outputs.DENSE | Outputs.SPARSE | Outputs.COLBERT


def attention_flops(q: Any, k: Any, *_: Any, **__: Any) -> int:
    """Operations for shapes [n, H, t, d]. PyTorch's counter does not know the CPU kernel."""
    n, heads, q_len, width = q
    return int(4 * n * heads * q_len * k[2] * width)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PackedEngine]:
    """Several layers, since the last one computes first tokens only.

    On any processor without packed weights, whose products PyTorch does not count, and without
    padding.
    """
    folder = tmp_path_factory.mktemp("deep")
    write_pair(folder / "hub", SHAPE, corpus())
    for model in MODELS:
        convert(folder / "hub" / model, folder / model, dtype="float32")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("checkpoint", "engine"):
            patch.setattr(f"bge_worker.engine.{module}.packs_weights", lambda *_: False)
        yield PackedEngine(settings_in(folder, attention="sdpa"))


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [("dense", Outputs.DENSE), ("all", ALL_OUTPUTS), ("rerank", Outputs.RELEVANCE)],
)
def test_the_counted_operations_are_those_of_the_forward_pass(
    kind: str, outputs: Outputs, engine: PackedEngine
) -> None:
    encoded = (
        engine.encode_pairs(["вопрос"], TEXTS, max_length=1024)
        if kind == "rerank"
        else engine.encode_texts(TEXTS, max_length=8192)
    )
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={kernel: attention_flops}) as counter:
        engine.run(outputs, encoded)
    workload = Workload("", "", kind, TEXTS, [len(text.ids) for text in encoded])
    needed = workload.flops(SHAPE)
    if kind != "all":  # the last layer's queries that nobody needs: they share a product with keys
        needed += 2 * (sum(workload.lengths) - len(TEXTS)) * SHAPE.width**2
    # The formula omits the sparse and relevance heads.
    assert counter.get_total_flops() == pytest.approx(needed, rel=0.005)


@pytest.mark.parametrize("path", tables.pages(), ids=lambda path: path.name)
def test_the_tables_match_the_results(path: Path) -> None:
    page = path.read_text("utf-8")
    assert tables.with_tables(page) == page, "python benchmarks/tables.py"


def test_a_run_replaces_only_its_own_entries() -> None:
    before = {"small": {"a": {"date": "1", "x": 1, "y": 1}, "b": {"date": "1"}}}
    after = {"small": {"a": {"date": "2", "x": 2}}, "full": {"a": {"date": "2"}}}
    assert merge(before, after) == {
        "small": {"a": {"date": "2", "x": 2}, "b": {"date": "1"}},
        "full": {"a": {"date": "2"}},
    }


def test_arrivals_are_random_at_the_given_rate() -> None:
    moments = list(arrivals(random.Random(0), rate=200, duration=50))
    gaps = np.array([later - earlier for earlier, later in pairwise(moments)])
    assert len(moments) == pytest.approx(10_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential


class TestAgreement:
    workload = Workload("mixed", "", "dense", TEXTS, [3, 4, 13])

    def peers(self, name: str) -> list[Process]:
        return [Process(OURS, Path()), Process(name, Path())]

    def test_a_different_output_ends_the_run(self) -> None:
        rows = {OURS: np.zeros((3, 4)), "Infinity": np.full((3, 4), 0.1)}
        with pytest.raises(SystemExit, match=r"Infinity differs by 0\.1"):
            check_agreement(self.workload, rows, self.peers("Infinity"))

    @pytest.mark.parametrize("name", ["Infinity", "OpenVINO int8"])
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_numbers_that_are_not_finite_end_the_run(self, name: str, value: float) -> None:
        rows = {OURS: np.zeros((3, 4)), name: np.full((3, 4), value)}
        with pytest.raises(SystemExit):
            check_agreement(self.workload, rows, self.peers(name))

    def test_the_difference_of_another_precision_is_recorded(self) -> None:
        peers = self.peers("ONNX Runtime int8")
        rows = {OURS: np.zeros((3, 4)), peers[1].name: np.full((3, 4), 0.1)}
        check_agreement(self.workload, rows, peers)
        assert peers[1].difference == pytest.approx(0.1)


def test_a_projection_is_the_share_of_the_published_peak() -> None:
    projections = project(Shares(chunks=0.4, mixed=0.3, source="this test"))
    l4 = next(projection for projection in projections if projection.gpu.startswith("L4"))
    # 0.4 of 121 TFLOP/s; a token of a 512-token chunk takes 0.63 GFLOP: two operations for each of
    # 302 M parameters, attention, and less in the last layer.
    assert l4.chunks == pytest.approx(77_000, rel=0.01)
    assert l4.dollars_per_million == pytest.approx(0.0032, rel=0.02)


def test_a_bert_encoder_keeps_its_vectors_in_our_format(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bert = BertModel(
        BertConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=32,
        )
    ).eval()
    bert.save_pretrained(tmp_path / "bert")
    words = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
    tokenizer = Tokenizer(WordLevel({word: id for id, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(words[:6])
    tokenizer.save(str(tmp_path / "bert" / "tokenizer.json"))
    write_trained(tmp_path / "bert", tmp_path / "hub")
    convert(tmp_path / "hub", tmp_path / "bge-m3", dtype="float32")
    engine = PackedEngine(Settings(tmp_path / "bge-m3", None, device="cpu"))
    (result,) = engine.run(Outputs.DENSE, engine.encode_texts(["a c b d"], max_length=32))
    ids = torch.tensor([[3, 6, 8, 7, 2, 4]])  # [CLS] a c b [UNK] [SEP]
    with torch.inference_mode():
        first = bert(ids).last_hidden_state[0, 0]
    assert result.dense == pytest.approx((first / first.norm()).numpy(), abs=1e-6)
