"""`worker/handler.py` with an engine of a stated speed that sleeps instead of computing.

Environment: PACED_TOKENS_PER_SECOND, PACED_BATCH_SECONDS, and PACED_READY_AT, the Unix time before
which the models are not loaded.
"""

from __future__ import annotations

import os
import runpy
import time
from collections.abc import Sequence
from typing import cast

from bge_worker.engine import engine
from bge_worker.engine.outputs import Outputs, Result
from bge_worker.engine.tokenizer import Encoded
from bge_worker.settings import Settings
from conftest import ROOT
from fakes.engine import EncodedText, FakeEngine


class PacedEngine(FakeEngine):
    """One token per character, at a constant rate; a score is the text's length."""

    def __init__(self, max_batch_tokens: int) -> None:
        super().__init__(max_batch_tokens)
        self._rate = float(os.environ["PACED_TOKENS_PER_SECOND"])
        self._batch_seconds = float(os.environ["PACED_BATCH_SECONDS"])

    def run(self, outputs: Outputs, texts: Sequence[Encoded]) -> Sequence[Result]:
        lengths = [len(text.text) for text in cast("Sequence[EncodedText]", texts)]
        time.sleep(self._batch_seconds + sum(lengths) / self._rate)
        return [float(length) for length in lengths]


def load_paced_engine(settings: Settings) -> PacedEngine:
    time.sleep(max(0.0, float(os.environ["PACED_READY_AT"]) - time.time()))
    return PacedEngine(settings.max_batch_tokens or 2048)


if __name__ == "__main__":
    engine.load_engine = load_paced_engine
    runpy.run_path(str(ROOT / "worker" / "handler.py"), run_name="__main__")
