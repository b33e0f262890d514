"""What a host would compute with a worker's model, right or wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bge_client import Client
from bge_worker.engine.engine import PackedEngine
from bge_worker.engine.packing import pack


def dense_of(client: Client, texts: list[str], **options: Any) -> np.ndarray[Any, Any]:
    dense = client.embed(texts, **options).dense
    assert dense is not None
    return dense


def mean_pooled(engine: PackedEngine, texts: list[str]) -> np.ndarray[Any, Any]:
    """Return the mean of each text's hidden states, as a host that ignores `1_Pooling` does."""
    encoded = engine.encode_texts(texts, 8192)
    model = engine._models["embed"]
    batch = pack([text.ids for text in encoded], 1, torch.device("cpu"))
    with torch.inference_mode():
        hidden = model.network.encoder(
            batch, engine._attention, cls_only=False, dtype=torch.float32
        )
    means = [rows.mean(0) for rows in hidden.split([len(text.ids) for text in encoded])]
    return torch.nn.functional.normalize(torch.stack(means), dim=1).numpy()


def perturbed(vectors: np.ndarray[Any, Any], cosine: float, seed: int = 0) -> np.ndarray[Any, Any]:
    """Return unit vectors with this cosine to `vectors`, in random directions."""
    noise = np.random.default_rng(seed).normal(size=vectors.shape)
    noise -= (noise * vectors).sum(1, keepdims=True) * vectors
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    result: np.ndarray[Any, Any] = cosine * vectors + np.sqrt(1 - cosine**2) * noise
    return result
