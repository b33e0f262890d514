"""The real queue and threads around a fake engine whose results reveal any mix-up.

A text's result is its own length, so a result of another text is noticed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_worker.engine.outputs import Outputs, Result
from bge_worker.engine.tokenizer import Encoded
from bge_worker.errors import (
    DeviceError,
    InferenceError,
    OutOfMemoryError,
    OverloadedError,
    TooLargeError,
    WorkerError,
)
from bge_worker.serving.batcher import Batcher, Finished
from bge_worker.serving.requests import EmbedRequest, InferenceRequest, RerankRequest
from fakes.engine import SOON, FakeDevice, FakeEngine, NoLimits
from fakes.serving import eventually


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def batcher(engine: FakeEngine) -> Iterator[Batcher]:
    batcher = Batcher(engine, limits=NoLimits(), max_queue=8)
    yield batcher
    engine.gate.set()
    batcher.close(timeout=SOON)


def texts(*lengths: int) -> EmbedRequest:
    return EmbedRequest(["x" * length for length in lengths])


def results(future: Future[Finished]) -> list[Result]:
    return list(future.result(SOON).results)


def hold(engine: FakeEngine, batcher: Batcher) -> Future[Finished]:
    """Keep the engine busy with a text of one token until `engine.gate` is set."""
    engine.gate.clear()
    future = batcher.submit(texts(1))
    assert engine.entered.acquire(timeout=SOON)
    return future


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(1, 150), min_size=1, max_size=30), min_size=1, max_size=8))
def test_every_text_gets_its_own_result_in_order(requests: list[list[int]]) -> None:
    engine = FakeEngine()
    batcher = Batcher(engine, limits=NoLimits(), max_queue=8)
    futures = [batcher.submit(texts(*lengths)) for lengths in requests]
    assert [results(future) for future in futures] == requests
    assert all(sum(map(len, batch)) <= 100 or len(batch) == 1 for batch in engine.batches)
    batcher.close(timeout=SOON)
    assert batcher.depth == 0


def test_a_short_request_waits_for_one_micro_batch_of_a_long_one(
    engine: FakeEngine, batcher: Batcher
) -> None:
    engine.gate.clear()
    bulk = batcher.submit(texts(*[10] * 2000))
    assert engine.entered.acquire(timeout=SOON)  # its first micro-batch is on the device
    query = batcher.submit(texts(7))
    wait_until_ready(batcher, 2)
    engine.gate.set()
    assert results(query) == [7]
    results(bulk)
    assert engine.batches[1] == ["x" * 7]


def test_short_and_long_requests_take_turns(engine: FakeEngine, batcher: Batcher) -> None:
    """Micro-batches have 100 tokens, so requests of up to 12 are short."""
    held = hold(engine, batcher)
    bulk = batcher.submit(texts(*[20] * 9))
    queries = [batcher.submit(texts(number, 6)) for number in (4, 5)]
    wait_until_ready(batcher, 3)
    engine.gate.set()
    for future in (held, bulk, *queries):
        results(future)
    sizes = [[len(text) for text in batch] for batch in engine.batches]
    assert sizes == [[1], [4, 6, 5, 6], [20] * 5, [20] * 4]


def test_requests_of_different_outputs_never_share_a_micro_batch(
    engine: FakeEngine, batcher: Batcher
) -> None:
    held = hold(engine, batcher)
    requests: list[InferenceRequest] = [
        texts(2),
        EmbedRequest(["xxx"], Outputs.SPARSE),
        RerankRequest("q", ["xxxx"]),
        texts(5),
    ]
    futures = [batcher.submit(request) for request in requests]
    wait_until_ready(batcher, 4)
    engine.gate.set()
    assert [results(future) for future in (held, *futures)] == [[1], [2], [3], [4], [5]]
    assert engine.batches == [["x"], ["xx", "xxxxx"], ["xxx"], ["xxxx"]]


def test_a_full_queue_refuses_requests(engine: FakeEngine, batcher: Batcher) -> None:
    futures = [hold(engine, batcher), *(batcher.submit(texts(2)) for _ in range(7))]
    with pytest.raises(OverloadedError, match="8 requests are waiting"):
        batcher.submit(texts(1))
    engine.gate.set()
    wait(futures, SOON)
    assert results(batcher.submit(texts(3))) == [3]


def test_a_cancelled_request_leaves_the_queue(engine: FakeEngine, batcher: Batcher) -> None:
    futures = [hold(engine, batcher), *(batcher.submit(texts(n)) for n in range(2, 9))]
    assert futures[4].cancel()
    replacement = batcher.submit(texts(9))  # its slot is free before the device is
    engine.gate.set()
    assert results(replacement) == [9]
    with pytest.raises(CancelledError):
        futures[4].result(SOON)
    wait([future for future in futures if not future.cancelled()], SOON)
    assert not any("x" * 5 in batch for batch in engine.batches)


def test_out_of_memory_halves_the_micro_batch(engine: FakeEngine, batcher: Batcher) -> None:
    def more_than_three(sources: list[str]) -> None:
        if len(sources) > 3:
            raise OutOfMemoryError("the device is out of memory")

    engine.fault = more_than_three
    assert results(batcher.submit(texts(*range(1, 9)))) == list(range(1, 9))
    assert [len(batch) for batch in engine.batches] == [8, 4, 2, 2, 4, 2, 2]


def test_a_text_too_large_for_the_device_is_named(engine: FakeEngine, batcher: Batcher) -> None:
    def too_long(sources: list[str]) -> None:
        if any(len(source) > 50 for source in sources):
            raise OutOfMemoryError("the device is out of memory")

    engine.fault = too_long
    with pytest.raises(OutOfMemoryError, match=r"`texts\[1\]` has 60 tokens and does not fit"):
        results(batcher.submit(texts(1, 60, 3)))


def test_a_failing_text_fails_its_own_request_alone(
    engine: FakeEngine, batcher: Batcher, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(sources: list[str]) -> None:
        if "x" * 13 in sources:
            raise ValueError("cannot do " + "x" * 13)  # a message that repeats the text

    engine.fault = fail
    held = hold(engine, batcher)
    good, bad, also_good = (batcher.submit(texts(*lengths)) for lengths in ([2, 3], [4, 13], [5]))
    wait_until_ready(batcher, 3)
    engine.gate.set()
    assert [results(future) for future in (held, good, also_good)] == [[1], [2, 3], [5]]
    with pytest.raises(InferenceError) as caught:
        results(bad)
    error_id = str(caught.value).split()[-1]
    assert f"inference error {error_id}: ValueError at " in caplog.text
    assert "x" * 13 not in caplog.text + str(caught.value)
    assert batcher.healthy


def test_a_request_over_a_limit_never_reaches_the_device(engine: FakeEngine) -> None:
    class FiveTokens(NoLimits):
        def check(self, request: InferenceRequest, encoded: Sequence[Encoded]) -> None:
            if len(encoded[0].ids) > 5:
                raise TooLargeError("no")

    batcher = Batcher(engine, FiveTokens(), max_queue=8)
    with pytest.raises(TooLargeError):
        results(batcher.submit(texts(6)))
    assert results(batcher.submit(texts(5))) == [5]
    assert engine.batches == [["x" * 5]]
    batcher.close(timeout=SOON)


def test_close_finishes_queued_requests_and_refuses_new_ones(
    engine: FakeEngine, batcher: Batcher
) -> None:
    futures = [hold(engine, batcher), batcher.submit(texts(2, 3))]
    closing = threading.Thread(target=batcher.close, args=(SOON,))
    closing.start()
    eventually(lambda: not batcher.healthy)
    with pytest.raises(OverloadedError, match="stopping"):
        batcher.submit(texts(1))
    engine.gate.set()
    closing.join(SOON)
    assert [results(future) for future in futures] == [[1], [2, 3]]


def test_close_fails_requests_not_finished_in_time(engine: FakeEngine, batcher: Batcher) -> None:
    futures = [hold(engine, batcher), batcher.submit(texts(2))]
    batcher.close(timeout=0.05)
    for future in futures:
        with pytest.raises(OverloadedError, match="stopping"):
            future.result(SOON)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_fails_all_requests(
    engine: FakeEngine, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[object]:
        raise KeyError("a bug")

    monkeypatch.setattr(batcher, "_next_batch", broken)
    future = batcher.submit(texts(1))
    with pytest.raises(InferenceError):
        future.result(SOON)
    assert not batcher.healthy
    with pytest.raises(WorkerError, match="must be replaced"):
        batcher.submit(texts(1))


class PanicException(BaseException):
    """As pyo3 raises a panic in Rust: no subclass of Exception."""


@pytest.mark.parametrize("method", ["encode_texts", "run"])
def test_a_panic_in_a_library_fails_its_request_alone(
    engine: FakeEngine, batcher: Batcher, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def panic(*_: object) -> None:
        raise PanicException

    with monkeypatch.context() as broken:
        broken.setattr(engine, method, panic)
        with pytest.raises(InferenceError):
            results(batcher.submit(texts(1)))
    assert results(batcher.submit(texts(2))) == [2]


def test_a_failed_micro_batch_frees_its_memory_before_the_halves(
    engine: FakeEngine, batcher: Batcher
) -> None:
    class Tensor:
        """A large object that only the failed forward references."""

    references: list[weakref.ref[Tensor]] = []

    def too_much(sources: list[str]) -> None:
        assert not any(reference() for reference in references)
        tensor = Tensor()
        references.append(weakref.ref(tensor))
        if len(sources) > 1:
            raise OutOfMemoryError("the device is out of memory")

    engine.fault = too_much
    assert results(batcher.submit(texts(1, 2, 3, 4))) == [1, 2, 3, 4]
    assert len(references) == 7


def wait_until_ready(batcher: Batcher, requests: int) -> None:
    """Wait until so many tokenised requests wait for the inference thread."""
    eventually(lambda: len(batcher._ready) == requests)


# ------------------------------------------------------------ beside a device that computes


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def beside_device(device: FakeDevice) -> Iterator[Batcher]:
    batcher = Batcher(device, limits=NoLimits(), max_queue=8)
    yield batcher
    device.gate.set()
    batcher.close(timeout=SOON)


def fail_together(sources: list[str]) -> None:
    if len(sources) > 1:
        raise OutOfMemoryError("the device is out of memory")


def test_results_are_handed_out_while_the_device_computes_the_next_micro_batch(
    device: FakeDevice, beside_device: Batcher
) -> None:
    device.gate.clear()
    futures = [beside_device.submit(texts(60))]
    assert device.entered.acquire(timeout=SOON)
    futures += [beside_device.submit(texts(70)), beside_device.submit(texts(80))]
    eventually(lambda: len(beside_device._ready) == 2)
    device.gate.set()
    assert [results(future) for future in futures] == [[60.0], [70.0], [80.0]]
    steps = [(name, len(sources[0])) for name, sources in device.steps]
    assert steps == [
        ("launch", 60), ("wait", 60),
        ("launch", 70), ("results", 60), ("wait", 70),
        ("launch", 80), ("results", 70), ("wait", 80),
        ("results", 80),
    ]  # fmt: skip


@pytest.mark.parametrize("step", ["fault", "fault_of_results"])
def test_a_micro_batch_that_fails_on_the_device_is_halved(
    device: FakeDevice, beside_device: Batcher, step: str
) -> None:
    setattr(device, step, fail_together)
    assert results(beside_device.submit(texts(5, 6, 7))) == [5.0, 6.0, 7.0]
    assert beside_device.counts.out_of_memory == 2
    assert results(beside_device.submit(texts(9))) == [9.0]


@pytest.mark.parametrize("step", ["fault", "fault_of_results"])
def test_a_text_that_fails_on_the_device_fails_its_own_request_alone(
    device: FakeDevice, beside_device: Batcher, step: str
) -> None:
    def fail_long(sources: list[str]) -> None:
        if any(len(source) == 9 for source in sources):
            raise RuntimeError("a kernel failed")

    setattr(device, step, fail_long)
    failing, other = beside_device.submit(texts(9)), beside_device.submit(texts(5))
    with pytest.raises(InferenceError):
        results(failing)
    assert results(other) == [5.0]


@pytest.mark.parametrize("step", ["fault", "fault_of_results"])
def test_a_device_that_has_failed_ends_the_worker(
    device: FakeDevice, beside_device: Batcher, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)  # the thread raises

    def fail(sources: list[str]) -> None:
        raise DeviceError("an illegal memory access")

    setattr(device, step, fail)
    with pytest.raises(InferenceError):
        results(beside_device.submit(texts(5, 6)))
    eventually(lambda: not beside_device.healthy)
    assert len([name for name, _ in device.steps if name == "launch"]) == 1  # not halved
