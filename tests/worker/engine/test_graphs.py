"""Small micro-batches padded for a graph. The tests marked `gpu` capture and replay graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bge_worker.engine.attention import SDPA, Attention, flash
from bge_worker.engine.checkpoint import Network, load
from bge_worker.engine.engine import PackedEngine
from bge_worker.engine.graphs import BUCKETS, SLOTS, bucket_of, capture, pad_to_bucket
from bge_worker.engine.manifest import Manifest
from bge_worker.engine.outputs import Outputs
from bge_worker.engine.packing import Batch, pack_on_host
from bge_worker.settings import EngineName
from conftest import settings_in
from fakes.flash_kernel import FlashKernel, registered

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


class RecordedNetwork:
    """A network whose computations `RecordedGraph` repeats on the same tensors, as a GPU would."""

    def __init__(self, network: Network) -> None:
        self.encoder = network.encoder
        self._network = network
        self._is_recording = False

    def compute(self, *arguments: Any) -> dict[str, torch.Tensor]:
        results = self._network.compute(*arguments)
        if self._is_recording:
            self._recorded = (arguments, results)
        return results

    def capture_begin(self, **_: object) -> None:
        self._is_recording = True

    def capture_end(self) -> None:
        self._is_recording = False

    def replay(self) -> None:
        arguments, results = self._recorded
        for name, tensor in self._network.compute(*arguments).items():
            results[name].copy_(tensor)


@pytest.mark.parametrize("bucket", BUCKETS)
def test_a_capture_is_checked_with_texts_of_other_lengths(
    runtimes: Callable[[EngineName], Path], monkeypatch: pytest.MonkeyPatch, bucket: int
) -> None:
    folder = runtimes("packed") / "bge-m3"
    manifest = Manifest.read(folder)
    recorded = RecordedNetwork(load(folder, manifest, torch.device("cpu"), torch.float16))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: recorded)
    flash_attention = Attention("flash", "", flash, is_capturable=True)
    arguments = (Outputs.DENSE, manifest.config)
    with torch.inference_mode(), registered(FlashKernel()):
        assert capture(recorded, *arguments, flash_attention, torch.float16, bucket, None)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match=f"the graph of {bucket} tokens computes other val"):
            capture(recorded, *arguments, SDPA, torch.float16, bucket, None)  # type: ignore[arg-type]


@gpu
@pytest.mark.parametrize("setting", [{"attention": "sdpa"}, {"dtype": "float32"}], ids=str)
def test_sdpa_has_no_graphs_since_it_reads_lengths_on_the_host(
    runtimes: Callable[[EngineName], Path], setting: dict[str, Any]
) -> None:
    engine = PackedEngine(settings_in(runtimes("packed"), device="cuda", **setting))
    assert not engine.has_graphs


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
