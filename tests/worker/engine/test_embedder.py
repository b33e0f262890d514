"""The library beside the worker, and around a fake engine whose results reveal any mix-up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_worker.engine import Embedder, load_tokenizer
from bge_worker.engine.manifest import TOKENIZER, Manifest
from bge_worker.engine.outputs import Embedding, Outputs
from bge_worker.errors import (
    DeviceError,
    InferenceError,
    OutOfMemoryError,
    StartError,
    ValidationError,
)
from bge_worker.serving.batcher import Batcher
from bge_worker.serving.requests import EmbedRequest
from bge_worker.settings import EngineName
from conftest import MODELS
from fakes.engine import ALL_VECTORS, MODEL, SOON, FakeDevice, FakeEngine, NoLimits

Runtimes = Callable[[EngineName], Path]
TEXTS = ["градиентный спуск", "море", "a transaction is all or nothing", "x"]


@pytest.fixture(scope="module")
def folder(runtimes: Runtimes) -> Path:
    return runtimes("packed") / MODELS[0]


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return Embedder.load(folder, device="cpu")


def of_engine(engine: FakeEngine) -> Embedder:
    engine.models = {"embed": MODEL}
    return Embedder(engine)  # type: ignore[arg-type]


def arrays(embedding: Embedding) -> list[Any]:
    assert embedding.sparse is not None
    return [embedding.dense, *embedding.sparse, embedding.colbert]


# ------------------------------------------------------------------------------- vectors


@pytest.fixture(scope="module")
def answers(embedder: Embedder, corpus: list[dict[str, str]]) -> Any:
    """Texts in some micro-batches, and the worker's results."""
    texts = [*TEXTS, *(row["text"] for row in corpus[:60])]
    batcher = Batcher(embedder._engine, limits=NoLimits(), max_queue=8)
    finished = [
        batcher.submit(EmbedRequest(part, ALL_VECTORS)).result(60) for part in (TEXTS, texts)
    ]
    batcher.close(timeout=SOON)
    return texts, finished


def test_vectors_are_those_of_the_worker(embedder: Embedder, answers: Any) -> None:
    texts, (of_one_batch, of_all) = answers
    embeddings = embedder.embed(TEXTS, sparse=True, colbert=True)
    for embedding, expected in zip(embeddings, of_one_batch.results, strict=True):
        for array, expected_array in zip(arrays(embedding), arrays(expected), strict=True):
            assert np.array_equal(array, expected_array)
    embeddings = embedder.embed(texts, sparse=True, colbert=True)
    for embedding, expected in zip(embeddings, of_all.results, strict=True):
        for array, expected_array in zip(arrays(embedding), arrays(expected), strict=True):
            np.testing.assert_allclose(array, expected_array, atol=1e-5)


def test_only_requested_outputs_are_computed(embedder: Embedder) -> None:
    (dense,) = embedder.embed(["море"])
    assert dense.dense is not None
    assert (dense.sparse, dense.colbert) == (None, None)
    (sparse,) = embedder.embed(["море"], dense=False, sparse=True, max_length=3)
    assert sparse.dense is None
    assert sparse.sparse is not None
    assert len(sparse.sparse.indices) == 1
    assert embedder.embed([]) == []


def test_eight_threads_get_the_vectors_of_one(embedder: Embedder) -> None:
    calls = [[f"{text} {number}" for text in TEXTS] for number in range(8)] * 4
    expected = [embedder.embed(texts) for texts in calls]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(embedder.embed, calls))
    for embeddings, of_call in zip(results, expected, strict=True):
        for embedding, of_text in zip(embeddings, of_call, strict=True):
            assert np.array_equal(embedding.dense, of_text.dense)


def test_a_tokenizer_without_weights_gives_the_same_ids(embedder: Embedder, folder: Path) -> None:
    encoded = load_tokenizer(folder).encode_texts(TEXTS, 5)
    assert encoded == embedder.tokenize(TEXTS, max_length=5)
    assert [text.truncated for text in encoded] == [
        len(ids.ids) > 5 for ids in embedder.tokenize(TEXTS)
    ]


# ------------------------------------------------------------------------- micro-batches


@given(st.lists(st.integers(1, 150), max_size=40))
def test_every_text_gets_its_own_result_in_order(lengths: list[int]) -> None:
    engine = FakeEngine(max_batch_tokens=100)
    results = of_engine(engine).embed(["x" * length for length in lengths])
    assert results == lengths
    assert all(sum(map(len, batch)) <= 100 or len(batch) == 1 for batch in engine.batches)
    launched = [len(text) for batch in engine.batches for text in batch]
    assert launched == sorted(lengths, reverse=True)


def test_the_host_makes_results_while_the_device_computes() -> None:
    device = FakeDevice(max_batch_tokens=10)
    assert of_engine(device).embed(["x" * 7, "x" * 8, "x" * 9]) == [7, 8, 9]
    steps = [(name, len(sources[0])) for name, sources in device.steps]
    assert steps == [
        ("launch", 9), ("wait", 9),
        ("launch", 8), ("results", 9), ("wait", 8),
        ("launch", 7), ("results", 8), ("wait", 7),
        ("results", 7),
    ]  # fmt: skip


def test_out_of_memory_halves_the_micro_batch() -> None:
    def more_than_three(sources: list[str]) -> None:
        if len(sources) > 3:
            raise OutOfMemoryError("the device is out of memory")

    engine = FakeEngine()
    engine.fault = more_than_three
    assert of_engine(engine).embed(["x" * n for n in range(1, 9)]) == list(range(1, 9))
    assert [len(batch) for batch in engine.batches] == [8, 4, 2, 2, 4, 2, 2]


def test_a_text_that_fails_alone_has_its_error_in_its_place() -> None:
    def fail(sources: list[str]) -> None:
        if "x" * 9 in sources:
            raise ValueError("cannot do " + "x" * 9)
        if "x" * 7 in sources:
            raise OutOfMemoryError("the device is out of memory")

    engine = FakeEngine()
    engine.fault = fail
    embedder = of_engine(engine)
    texts = ["x" * n for n in (5, 7, 6, 9, 8)]
    results = embedder.embed_encoded(embedder.tokenize(texts), Outputs.DENSE)
    assert (results[0], results[2], results[4]) == (5.0, 6.0, 8.0)
    assert isinstance(results[1], OutOfMemoryError)
    assert "`texts[1]` has 7 tokens and does not fit the device" in str(results[1])
    assert isinstance(results[3], InferenceError)
    assert "x" * 9 not in str(results[3])
    with pytest.raises(OutOfMemoryError):  # the first one
        embedder.embed(texts)


def test_a_failed_device_and_an_interrupt_are_raised_and_leave_the_device_free() -> None:
    engine = FakeEngine()
    embedder = of_engine(engine)
    for error in (DeviceError("an illegal memory access"), KeyboardInterrupt()):

        def fail(sources: list[str], error: BaseException = error) -> None:
            raise error

        engine.fault = fail
        with pytest.raises(type(error)):
            embedder.embed(["x", "xx"])
    engine.fault = lambda sources: None
    assert embedder.embed(["xxx"]) == [3]


# -------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["a", "b", "c", " \n"], {}, r"`texts\[3\]` must not be empty or blank. Given: a string"),
        (["a", ""], {}, r"`texts\[1\]` must not be empty or blank. Given: an empty string"),
        (["a\ud800"], {}, r"`texts\[0\]` must be valid Unicode. Given: a lone surrogate at char"),
        (["a", 5], {}, r"`texts\[1\]` must be a string. Given: int"),
        (["a" * 1_000_001], {}, r"`texts\[0\]` must have at most 1000000 char.* Given: 1000001"),
        ("море", {}, "`texts` must be a list of strings, not one"),
        (["a"], {"max_length": 2}, "`max_length` must be at least 3. Given: 2"),
        (["a"], {"dense": False}, "one of `dense`, `sparse`, `colbert` must be true"),
    ],
)
def test_what_is_not_valid_is_named(
    embedder: Embedder, arguments: Any, options: Any, message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        embedder.embed(arguments, **options)


@pytest.mark.parametrize("outputs", [Outputs(0), Outputs.RAW, Outputs.RELEVANCE | Outputs.DENSE])
def test_outputs_without_vectors_are_refused(embedder: Embedder, outputs: Outputs) -> None:
    with pytest.raises(ValidationError, match="`outputs` must hold DENSE, SPARSE or COLBERT"):
        embedder.embed_encoded([], outputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "`device` must be one of auto, cuda, cpu. Given: 'tpu'"),
        ({"dtype": "bfloat16"}, "`dtype` must be one of auto, float16, float32, int8. Given"),
        ({"dtype": "int8"}, r"`dtype` \(`BGE_DTYPE`\) is int8, and .* is not: make it with"),
        ({"attention": "fast"}, "`attention` must be one of auto, flash, sdpa. Given: 'fast'"),
        ({"max_batch_tokens": 0}, "`max_batch_tokens` must be at least 1. Given: 0"),
    ],
)
def test_an_option_that_is_not_valid_stops_the_load(
    folder: Path, options: Any, message: str
) -> None:
    with pytest.raises(StartError, match=message):
        Embedder.load(folder, **({"device": "cpu"} | options))


def test_a_folder_without_an_embedding_model_is_refused(runtimes: Runtimes, folder: Path) -> None:
    with pytest.raises(StartError, match="holds a model to rerank, not to embed"):
        Embedder.load(runtimes("packed") / MODELS[1])
    with pytest.raises(StartError, match="for the engine flagembedding; `engine`"):
        Embedder.load(runtimes("flagembedding") / MODELS[0])
    for load in (Embedder.load, load_tokenizer):
        with pytest.raises(StartError, match="`/nowhere` is not a runtime folder"):
            load("/nowhere")


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    Manifest.read(folder).write(tmp_path)
    (tmp_path / TOKENIZER).write_bytes((folder / TOKENIZER).read_bytes().replace(b"a", b"b"))
    with pytest.raises(StartError, match="does not have the sha256 of its manifest"):
        load_tokenizer(tmp_path)


# -------------------------------------------------------------------------- environment


def test_no_environment_variable_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEVICE", "DTYPE", "ATTENTION", "ENGINE", "MAX_BATCH_TOKENS", "EMBED_MODEL"):
        monkeypatch.setenv(f"BGE_{name}", "nonsense")
    embedder = Embedder.load(str(folder), device="cpu", attention="sdpa", max_batch_tokens=77)
    assert embedder.info.model == "miniature/bge-m3"
    assert (embedder.runtime.attention, embedder.runtime.max_batch_tokens) == ("sdpa", 77)


def test_the_package_and_its_tokenizer_need_no_torch(folder: Path) -> None:
    program = (
        "import sys, bge_worker.engine\n"
        f"bge_worker.engine.load_tokenizer({str(folder)!r}).encode_texts(['a'], 8)\n"
        "print(*{'torch', 'safetensors', 'msgspec'} & {*sys.modules})\n"
        "from bge_worker.engine import Embedder\n"
        "print(*{'starlette', 'msgspec', 'orjson', 'runpod', 'uvicorn'} & {*sys.modules})\n"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (child.stdout, child.stderr) == ("\n\n", "")
    with pytest.raises(ImportError, match="cannot import name 'Reranker'"):
        from bge_worker.engine import Reranker  # noqa: F401
