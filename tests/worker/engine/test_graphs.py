"""Small micro-batches padded for a graph. The tests marked `gpu` capture and replay graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bge_worker.engine.engine import PackedEngine
from bge_worker.engine.graphs import BUCKETS, SLOTS, bucket_of, pad_to_bucket
from bge_worker.engine.outputs import Outputs
from bge_worker.engine.packing import Batch, pack_on_host
from bge_worker.settings import EngineName
from conftest import settings_in

gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.version.hip is not None, reason="needs an NVIDIA GPU"
)
UNKNOWN = 3
TEXTS = ["градиентный спуск", "море", "a transaction " * 9, "суша"]
SEQUENCES = st.lists(
    st.lists(st.integers(4, 9), min_size=2, max_size=40), min_size=1, max_size=SLOTS + 1
)


@given(SEQUENCES)
def test_a_micro_batch_is_padded_by_dummy_texts_to_the_smallest_graph(
    sequences: list[Sequence[int]],
) -> None:
    tokens = sum(map(len, sequences))
    bucket = bucket_of(len(sequences), tokens)
    if bucket is None:
        assert len(sequences) >= SLOTS or tokens + SLOTS - len(sequences) > BUCKETS[-1]
        return
    padded = pad_to_bucket(sequences, bucket, UNKNOWN)
    assert padded[: len(sequences)] == sequences
    assert (len(padded), sum(map(len, padded))) == (SLOTS, bucket)
    assert all(padded)
    smaller = [size for size in BUCKETS if size < bucket]
    assert not smaller or tokens + SLOTS - len(sequences) > smaller[-1]


def test_dummy_texts_do_not_change_the_others(packed: PackedEngine) -> None:
    network, _, manifest = packed._models["embed"]
    ids = [text.ids for text in packed.encode_texts(TEXTS, 8192)]
    padded = pad_to_bucket(ids, 128, manifest.config.unk_token_id)
    buffer = pack_on_host(padded, manifest.config.pad_token_id)
    batch = Batch.of(buffer, [len(text) for text in padded], max_seqlen=128)
    with torch.inference_mode():
        results = network.compute(batch, Outputs.DENSE, packed._attention, torch.float32)
    expected = packed.run(Outputs.DENSE, packed.encode_texts(TEXTS, 8192))
    dense = results["dense"][: len(TEXTS)].numpy()
    for vector, reference in zip(dense, expected, strict=True):
        np.testing.assert_allclose(vector, reference.dense, atol=1e-5)


@gpu
def test_a_graph_computes_what_the_forward_computes(
    runtimes: Callable[[EngineName], Path],
) -> None:
    folder = runtimes("packed")
    engine = PackedEngine(settings_in(folder, device="cuda"))
    without = PackedEngine(settings_in(folder, device="cuda", cuda_graphs=False))
    assert len(engine._graphs["embed"]._graphs) == len(BUCKETS)
    for count in (1, 2, 4):
        for words in (1, 30, 100, 900):
            texts = [f"{text} " * words for text in TEXTS[:count]]
            encoded = engine.encode_texts(texts, 8192)
            pairs = engine.encode_pairs(["море"], texts, 1024)
            results = engine.run(Outputs.DENSE, encoded)
            for result, expected in zip(results, without.run(Outputs.DENSE, encoded), strict=True):
                np.testing.assert_allclose(result.dense, expected.dense, atol=4e-3)
            scores = engine.run(Outputs.RELEVANCE, pairs)
            assert scores == pytest.approx(without.run(Outputs.RELEVANCE, pairs), abs=4e-2)
