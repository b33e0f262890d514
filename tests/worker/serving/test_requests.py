"""Which replies are built without another thread."""

from __future__ import annotations

import pytest

from bge_worker.engine.outputs import Outputs
from bge_worker.serving.requests import EmbedRequest, RerankRequest, has_small_reply


@pytest.mark.parametrize(
    ("inference_request", "tokens", "is_small"),
    [
        (EmbedRequest(["a"] * 4), 512, True),
        (EmbedRequest(["a"] * 5), 512, False),
        (EmbedRequest(["a"]), 513, False),
        (EmbedRequest(["a"], Outputs.DENSE | Outputs.COLBERT), 3, False),
        (RerankRequest("q", ["a"]), 3, True),
        (RerankRequest("q", ["a"], return_documents=True), 3, False),
    ],
)
def test_few_texts_without_long_outputs_have_a_small_reply(
    inference_request: EmbedRequest | RerankRequest, tokens: int, is_small: bool
) -> None:
    assert has_small_reply(inference_request, tokens) == is_small
