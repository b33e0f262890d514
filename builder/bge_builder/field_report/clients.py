"""Client packages against RunPod's own URLs. They come with the tests' requirements."""

from __future__ import annotations

from typing import Any

import numpy as np

from bge_client import Client

from .measures import QUERY, required
from .record import ReportError

MODEL = "bge-m3"
TIMEOUT = 60  # seconds of a request to a warm worker
TOLERANCE = 1e-3  # fp16, in other micro-batches


def measure_clients(client: Client, urls: dict[str, str], key: str) -> dict[str, Any]:
    """Compare each client's vector with that of `client`. `urls` maps clients to base URLs.

    Raises ReportError: a package is not installed.
    """
    expected = required(client.embed(QUERY, dtype="float32").dense)[0]
    outcomes = {}
    for name, url in urls.items():
        try:
            vector = openai_vector(url, key) if name.startswith("openai") else sdk_vector(url, key)
        except ImportError as error:
            raise ReportError(f"`make setup-test` installs {error.name}") from None
        except Exception as error:  # whatever a client raises is its outcome
            outcomes[name] = f"failed: {type(error).__name__}"
            continue
        difference = float(np.abs(np.array(vector, np.float32) - expected).max())
        outcomes[name] = "agrees" if difference <= TOLERANCE else f"differs by {difference:.1e}"
    return {"agree": {*outcomes.values()} == {"agrees"}, **outcomes}


def openai_vector(url: str, key: str) -> list[float]:
    from openai import OpenAI

    with OpenAI(base_url=url, api_key=key, timeout=TIMEOUT, max_retries=0) as client:
        return client.embeddings.create(model=MODEL, input=QUERY).data[0].embedding


def sdk_vector(endpoint_id: str, key: str) -> list[float]:
    import runpod

    endpoint = runpod.Endpoint(endpoint_id, api_key=key)
    output: dict[str, Any] = endpoint.run_sync({"input": {"texts": [QUERY]}}, timeout=TIMEOUT)
    vector: list[float] = output["embeddings"][0]
    return vector
