"""Project a GPU's speed and cost from published peaks and prices, and a share of the peak.

The share is that of a GPU measured by `make bench-gpu`. Without one, it is this project's goal, and
the table is labelled as assumed. A card with less memory bandwidth for its arithmetic reaches less.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from bge_builder.planner.cards import catalogue
from bge_worker.engine.runtime import GPU_BATCH_TOKENS
from results import FOLDER
from workload import SHAPES, Workload, mixed_texts, texts_of_length, token_lengths

# Dollars per million tokens: the cheapest provider of the same embedding model.
HOSTED_PRICE = min(model.embed for model in catalogue().hosted if model.same_model)


@dataclass(frozen=True)
class Gpu:
    """`tflops`: the maker's figure for dense fp16 products summed in fp32. `price`: dollars per
    second on RunPod Serverless (flex), None if it has no such card."""

    name: str
    tflops: float
    price: float | None


GPUS = tuple(
    Gpu(
        f"{card.name}, {card.memory_gb} GB",
        card.tflops,
        catalogue().price(card) if card.pool else None,
    )
    for card in catalogue().cards
)
PEAKS = {"NVIDIA H200": 989.0, "NVIDIA H100 80GB HBM3": 989.0, "NVIDIA L4": 121.0, "Tesla T4": 65.0}
GOALS = {"chunks": 0.6, "mixed": 0.5}  # of the large product's rate
PRODUCT_SHARE = 0.7  # of the published peak, assumed for a large product


@dataclass(frozen=True)
class Shares:
    """Shares of the published peak, on chunks of 512 tokens and on mixed lengths."""

    chunks: float
    mixed: float
    source: str


def find_shares() -> Shares:
    for path in sorted(FOLDER.glob("*.json")):
        content = json.loads(path.read_text("utf-8"))
        name = content["machine"]["gpu"]
        if name in PEAKS and "throughput" in content.get("gpu", {}):
            rates = content["gpu"]["throughput"]
            product = content["gpu"]["card"]["gflops"] / 1e3 / PEAKS[name]
            shares = (
                product * rates[lengths][str(GPU_BATCH_TOKENS)]["share_of_product"]
                for lengths in ("512 tokens", "mixed lengths")
            )
            return Shares(*shares, f"measured on {name}")
    return Shares(*(goal * PRODUCT_SHARE for goal in GOALS.values()), "assumed")


def flops(texts: list[str], *, pair: int = 0) -> float:
    """Return the operations to embed the texts, or to score each with a query of `pair` tokens."""
    lengths = [length + pair for length in token_lengths(texts)]
    return Workload("", "", "dense", texts, lengths).flops(SHAPES["full"])


@dataclass(frozen=True)
class Projection:
    """`chunks`, `mixed`: tokens per second. `texts_ms`: 32 mixed texts. `documents_ms`: a rerank of
    100 documents of 128 tokens."""

    gpu: str
    chunks: float
    mixed: float
    dollars_per_million: float | None
    texts_ms: float
    documents_ms: float


def project(shares: Shares) -> list[Projection]:
    chunk, mixed = texts_of_length(1, 512), mixed_texts(320)
    documents = texts_of_length(100, 128)
    mixed_flops_per_token = flops(mixed) / sum(token_lengths(mixed))
    projections = []
    for gpu in GPUS:
        chunks_rate, mixed_rate = (1e12 * gpu.tflops * s for s in (shares.chunks, shares.mixed))
        tokens_per_second = mixed_rate / mixed_flops_per_token
        projections.append(
            Projection(
                gpu.name,
                512 * chunks_rate / flops(chunk),
                tokens_per_second,
                None if gpu.price is None else 1e6 * gpu.price / tokens_per_second,
                1e3 * flops(mixed) / 10 / mixed_rate,
                1e3 * flops(documents, pair=12) / mixed_rate,
            )
        )
    return projections
