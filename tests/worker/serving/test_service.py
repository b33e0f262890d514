"""The service around an engine."""

from __future__ import annotations

import asyncio
import copy
from contextlib import closing

import pytest

from bge_worker.engine.engine import Engine
from bge_worker.errors import NotServedError
from bge_worker.serving.service import Service
from bge_worker.settings import Settings
from fakes.serving import answer


def test_info_describes_models_runtime_and_limits(service: Service) -> None:
    info = answer(service, {"info": True})
    assert info["models"]["embed"]["width"] == 512
    assert info["models"]["rerank"]["fingerprint"] != info["models"]["embed"]["fingerprint"]
    assert info["engine"] in ("packed", "flagembedding")
    assert info["device"] == "cpu"
    assert info["attention"]
    assert info["attention_reason"]
    assert info["limits"]["max_texts"] == 2048
    assert {"torch", "python", "bge-serverless"} <= set(info["versions"])


def test_a_model_that_is_not_loaded_is_not_served(packed: Engine) -> None:
    rerank_only = copy.copy(packed)
    rerank_only.models = {"rerank": packed.models["rerank"]}
    with closing(Service(rerank_only, Settings())) as service:
        with pytest.raises(NotServedError, match="`BGE_EMBED_MODEL` is empty"):
            answer(service, {"texts": "a"})
        assert answer(service, {"query": "a", "documents": ["a"]})["results"]


def test_a_closed_service_is_not_fit(packed: Engine) -> None:
    service = Service(packed, Settings())
    asyncio.run(service.check())
    service.close()
    with pytest.raises(RuntimeError, match="a thread of the batcher is dead"):
        asyncio.run(service.check())
