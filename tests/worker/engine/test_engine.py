"""Loading is strict; what fails in fp16 is redone in fp32; memory that runs out is said so."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bge_worker.engine.attention import Attention
from bge_worker.engine.checkpoint import File, Manifest
from bge_worker.engine.engine import NotFiniteError, PackedEngine, load_engine
from bge_worker.engine.outputs import Embedding, Outputs
from bge_worker.engine.tokenizer import open_tokenizer
from bge_worker.errors import InferenceError, OutOfMemoryError, StartError
from bge_worker.serving.batcher import Batcher
from bge_worker.serving.requests import EmbedRequest
from bge_worker.settings import EngineName
from conftest import MODELS, settings_in
from fakes.engine import NoLimits

EMBED = MODELS[0]
EVERYTHING = Outputs.DENSE | Outputs.SPARSE | Outputs.COLBERT
TEXTS = ["градиентный спуск", "море", "a transaction " * 9]


@pytest.fixture
def copy(runtimes: Callable[[EngineName], Path], tmp_path: Path) -> Path:
    """The packed runtime folders, to be damaged."""
    return Path(shutil.copytree(runtimes("packed"), tmp_path / "models"))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights and have the manifest agree on the file."""
    path = folder / EMBED / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    manifest = Manifest.read(folder / EMBED)
    files = manifest.files | {path.name: File.of(path)}
    dataclasses.replace(manifest, files=files).write(folder / EMBED)


def edit_manifest(folder: Path, **fields: Any) -> None:
    path = folder / EMBED / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_tokenizer(folder: Path, change: Callable[[bytes], bytes]) -> None:
    path = folder / EMBED / "tokenizer.json"
    path.write_bytes(change(path.read_bytes()))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing tensor": (
        lambda f: rewrite(f, lambda t: t.pop("encoder.layers.0.up.bias")),
        "lacks 1 tensors, `encoder.layers.0.up.bias` first",
    ),
    "extra tensor": (
        lambda f: rewrite(f, lambda t: t.update({"adapter": torch.zeros(1)})),
        "has 1 unknown tensors, `adapter` first",
    ),
    "misshapen tensor": (
        lambda f: rewrite(f, lambda t: t.update({"encoder.norm.bias": torch.zeros(1)})),
        "`encoder.norm.bias` is [1], not [512]",
    ),
    "another dtype": (
        lambda f: rewrite(f, lambda t: t.update({"head.sparse.bias": torch.zeros(1)})),
        "`head.sparse.bias` is torch.float32, not float16",
    ),
    "cut short": (
        lambda f: (f / EMBED / "model.safetensors").write_bytes(b"short"),
        "has 5 bytes; its manifest says",
    ),
    "wrong tokenizer": (
        lambda f: edit_tokenizer(f, lambda content: content.replace(b"-8", b"-7", 1)),
        "does not have the sha256 of its manifest",
    ),
    "wrong weights": (
        lambda f: save_file(
            {name: t + 1 for name, t in load_file(f / EMBED / "model.safetensors").items()},
            f / EMBED / "model.safetensors",
            metadata={"format": "pt"},  # of the same size to the byte
        ),
        "model.safetensors` does not have the sha256 of its manifest",
    ),
    "no manifest": (lambda f: (f / EMBED / "manifest.json").unlink(), "is not a runtime folder"),
    "another format": (lambda f: edit_manifest(f, format=99), "has another format than 2"),
    "half a manifest": (
        lambda f: (f / EMBED / "manifest.json").write_text('{"format": 2}'),
        "is not a manifest",
    ),
    "no such layout": (lambda f: edit_manifest(f, layout="flat"), "is not a manifest"),
    "no files": (lambda f: edit_manifest(f, files={}), "is not a manifest"),
    "the other role": (
        lambda f: (shutil.rmtree(f / EMBED), shutil.copytree(f / MODELS[1], f / EMBED)),
        "holds a model to rerank, not to embed",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_runtime_folder_stops_the_start_by_name(name: str, copy: Path) -> None:
    damage, sentence = DAMAGES[name]
    damage(copy)
    with pytest.raises(StartError) as caught:
        PackedEngine(settings_in(copy))
    assert sentence in str(caught.value)


def test_models_with_equal_tokenizers_share_one(
    runtimes: Callable[[EngineName], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def open_and_count(path: Path) -> Any:
        opened.append(path)
        return open_tokenizer(path)

    monkeypatch.setattr("bge_worker.engine.engine.open_tokenizer", open_and_count)
    assert {*PackedEngine(settings_in(runtimes("packed"))).models} == {"embed", "rerank"}
    assert len(opened) == 1


def test_one_model_may_be_left_out(runtimes: Callable[[EngineName], Path]) -> None:
    engine = PackedEngine(settings_in(runtimes("packed"), rerank_model=None))
    assert [*engine.models] == ["embed"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_stops_the_start(runtimes: Callable[[EngineName], Path]) -> None:
    with pytest.raises(StartError, match="`BGE_DEVICE` is cuda, but PyTorch sees no GPU"):
        PackedEngine(settings_in(runtimes("packed"), device="cuda"))


def test_flagembedding_that_is_not_installed_is_asked_for(
    runtimes: Callable[[EngineName], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "FlagEmbedding", None)
    settings = settings_in(runtimes("flagembedding"), engine="flagembedding")
    with pytest.raises(StartError, match="is not installed: pip install FlagEmbedding"):
        load_engine(settings)


# ------------------------------------------------------------------- faults, injected


class Faulty:
    """The engine's attention, made to fail in chosen calls."""

    def __init__(self, engine: PackedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.whole = engine._attention
        self.tokens: list[int] = []
        self.dtypes: list[torch.dtype] = []
        self.spoil: Callable[[torch.Tensor, Any], torch.Tensor] = lambda out, keys: out
        faulty = Attention("faulty", "a test", self.run)
        monkeypatch.setattr(engine, "_attention", faulty)

    def run(self, q: Any, k: Any, v: Any, queries: Any, keys: Any) -> torch.Tensor:
        self.tokens.append(sum(keys.lengths))
        self.dtypes.append(q.dtype)
        return self.spoil(self.whole.run(q, k, v, queries, keys), keys)


@pytest.fixture
def faulty(packed: PackedEngine, monkeypatch: pytest.MonkeyPatch) -> Faulty:
    return Faulty(packed, monkeypatch)


def embed(engine: PackedEngine, outputs: Outputs = EVERYTHING) -> list[Embedding]:
    results: list[Any] = list(engine.run(outputs, engine.encode_texts(TEXTS, 8192)))
    return results


@pytest.mark.parametrize(
    "outputs", [Outputs.DENSE, Outputs.SPARSE, Outputs.COLBERT, EVERYTHING], ids=str
)
def test_a_text_that_overflows_is_redone_alone_in_fp32(
    packed: PackedEngine, faulty: Faulty, outputs: Outputs
) -> None:
    whole = embed(packed, outputs)
    calls = len(faulty.tokens)
    length = len(packed.encode_texts(TEXTS, 8192)[1].ids)

    def overflow_once(out: torch.Tensor, keys: Any) -> torch.Tensor:
        if len(keys.lengths) == 3:  # the micro-batch of all, not the text alone
            rows = slice(0, 1) if len(out) == 3 else slice(0, keys.lengths[0])
            out[rows] = float("nan")
        return out

    faulty.spoil = overflow_once
    again = embed(packed, outputs)
    # texts lie in the batch by length, so the shortest was hit, and it alone was redone
    shortest = min(len(text.ids) for text in packed.encode_texts(TEXTS, 8192))
    assert faulty.tokens[calls:][-1] == shortest == length
    for one, other in zip(whole, again, strict=True):
        for mine, theirs in ((one.dense, other.dense), (one.colbert, other.colbert)):
            if mine is not None:
                np.testing.assert_allclose(mine, theirs, atol=1e-5)
        if one.sparse is not None and other.sparse is not None:
            assert one.sparse.indices.tolist() == other.sparse.indices.tolist()


def test_half_precision_is_redone_in_fp32_for_real(
    runtimes: Callable[[EngineName], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    half = PackedEngine(settings_in(runtimes("packed"), dtype="float16"))
    faulty = Faulty(half, monkeypatch)
    faulty.spoil = lambda out, keys: out * (float("inf") if out.dtype == torch.float16 else 1)
    single = PackedEngine(settings_in(runtimes("packed"), dtype="float32"))
    for one, other in zip(embed(half), embed(single), strict=True):
        np.testing.assert_allclose(one.dense, other.dense, atol=1e-5)
    assert torch.float32 in faulty.dtypes


def test_what_stays_not_finite_fails_its_request_and_no_other(
    packed: PackedEngine, faulty: Faulty
) -> None:
    poisoned = len(packed.encode_texts([TEXTS[2]], 8192)[0].ids)

    def never_finite(out: torch.Tensor, keys: Any) -> torch.Tensor:
        for text, length in enumerate(keys.lengths):
            if length == poisoned:
                row = text if len(out) == len(keys.lengths) else sum(keys.lengths[:text])
                out[row] = float("inf")
        return out

    faulty.spoil = never_finite
    with pytest.raises(NotFiniteError):
        embed(packed, Outputs.DENSE)
    batcher = Batcher(packed, NoLimits(), max_queue=8)
    good, bad = (batcher.submit(EmbedRequest([text])) for text in (TEXTS[0], TEXTS[2]))
    assert len(good.result(30).results) == 1
    with pytest.raises(InferenceError):
        bad.result(30)
    batcher.close(timeout=10)


def test_a_score_that_is_not_finite_is_never_sent(packed: PackedEngine, faulty: Faulty) -> None:
    faulty.spoil = lambda out, keys: out * float("nan")
    with pytest.raises(NotFiniteError):
        packed.run(Outputs.RELEVANCE, packed.encode_pairs("море", ["суша"], 1024))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_runs_out_halves_the_micro_batch(
    packed: PackedEngine, faulty: Faulty, error: Exception
) -> None:
    whole = embed(packed, Outputs.DENSE)

    def too_much(out: torch.Tensor, keys: Any) -> torch.Tensor:
        if len(keys.lengths) > 1:
            raise error
        return out

    faulty.spoil = too_much
    with pytest.raises(OutOfMemoryError):
        embed(packed, Outputs.DENSE)
    batcher = Batcher(packed, NoLimits(), max_queue=8)
    results: list[Any] = list(batcher.submit(EmbedRequest(TEXTS)).result(30).results)
    batcher.close(timeout=10)
    for one, other in zip(whole, results, strict=True):
        np.testing.assert_allclose(one.dense, other.dense, atol=1e-5)


def test_settings_reach_the_runtime(runtimes: Callable[[EngineName], Path]) -> None:
    folder = runtimes("packed")
    assert PackedEngine(settings_in(folder)).runtime.max_batch_tokens == 2048
    engine = PackedEngine(settings_in(folder, max_batch_tokens=77, dtype="float16"))
    assert engine.runtime.max_batch_tokens == 77
    assert engine.runtime.dtype == "float16"
