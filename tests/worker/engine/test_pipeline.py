"""What the batcher's and the embedder's tests do not reach: a launch fails behind another batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bge_worker.engine.outputs import Outputs, Result
from bge_worker.engine.pipeline import Pipeline
from bge_worker.engine.tokenizer import Encoded
from bge_worker.errors import OutOfMemoryError, WorkerError
from fakes.engine import FakeDevice


@dataclass
class Item:
    text: Encoded
    is_over: bool = False
    position: tuple[str, int] = ("texts", 0)
    outcomes: list[Result | WorkerError] = field(default_factory=list)

    def add_result(self, result: Result) -> None:
        self.outcomes.append(result)

    def fail(self, error: WorkerError) -> None:
        self.outcomes.append(error)


class FullDevice(FakeDevice):
    """Has no memory for a second text while another micro-batch is not turned into results."""

    def launch(self, outputs: Outputs, texts: Sequence[Encoded]) -> Any:
        if len(texts) > 1:
            raise OutOfMemoryError("the device is out of memory")
        return super().launch(outputs, texts)


def test_a_micro_batch_that_cannot_be_launched_does_not_displace_the_one_before() -> None:
    device = FullDevice()
    items = [Item(text) for text in device.encode_texts(["x", "xx", "xxx"], 8)]
    pipeline = Pipeline(device)
    pipeline.run(Outputs.DENSE, items[:1])
    assert pipeline.is_pending
    pipeline.run(Outputs.DENSE, items[1:])
    pipeline.finish()
    assert [item.outcomes for item in items] == [[1.0], [2.0], [3.0]]
    assert pipeline.counts.out_of_memory == 1
    assert device.steps[2] == ("results", ["x"])  # before the halves need its memory


def test_a_text_that_nobody_waits_for_is_not_computed_again() -> None:
    device = FullDevice()
    items = [Item(text) for text in device.encode_texts(["x", "xx"], 8)]
    items[1].is_over = True
    pipeline = Pipeline(device)
    pipeline.run(Outputs.DENSE, items)
    assert [item.outcomes for item in items] == [[1.0], []]
