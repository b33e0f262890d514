"""What a GPU would do and cost, on paper: published peaks and prices, and the share reached.

The share is that of a GPU which `make bench-gpu` has measured. Until there is one it is the goal
this project has set itself, and whatever comes of it is labelled so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from results import FOLDER
from workload import SHAPES, Workload, lengths_of, mixed_texts, of_length

HOSTED = 0.05  # dollars a million tokens: Jina's list price for its embeddings API


@dataclass(frozen=True)
class Gpu:
    """`tflops`: the maker's figure, dense fp16 products summed in fp32. `price`: RunPod
    Serverless, flex, dollars a second; None where it has no such card."""

    name: str
    tflops: float
    price: float | None


GPUS = (
    Gpu("A4000, 16 GB", 76.7, 0.00016),
    Gpu("L4, 24 GB", 121.0, 0.00019),
    Gpu("A5000, 24 GB", 111.1, 0.00019),
    Gpu("RTX 3090, 24 GB", 71.0, 0.00019),
    Gpu("RTX 4090, 24 GB", 165.2, 0.00031),
    Gpu("A40, 48 GB", 149.7, 0.00034),
    Gpu("A6000, 48 GB", 154.8, 0.00034),
    Gpu("L40S, 48 GB", 362.0, 0.00053),
    Gpu("T4, 16 GB", 65.0, None),
    Gpu("7900 XTX, 24 GB", 122.8, None),
)
PEAKS = {"NVIDIA H200": 989.0, "NVIDIA H100 80GB HBM3": 989.0, "NVIDIA L4": 121.0, "Tesla T4": 65.0}
GOALS = {"chunks": 0.6, "mixed": 0.5}  # of the large product's rate
PRODUCT = 0.7  # of the published peak that a large product reaches: assumed


@dataclass(frozen=True)
class Shares:
    """Of a published peak, on chunks of 512 tokens and on mixed lengths; and where from."""

    chunks: float
    mixed: float
    source: str


def shares() -> Shares:
    for path in sorted(FOLDER.glob("*.json")):
        found = json.loads(path.read_text("utf-8"))
        name = found["machine"]["gpu"]
        if name in PEAKS and {"chunks", "mixed"} <= found.get("engine", {}).get("full", {}).keys():
            return Shares(*(of_peak(found["engine"]["full"][k], name) for k in GOALS), name)
    return Shares(*(goal * PRODUCT for goal in GOALS.values()), "assumed")


def of_peak(entry: dict[str, Any], name: str) -> float:
    return float(entry["share_of"]["product"] * entry["ceiling"]["gflops"] / 1e3 / PEAKS[name])


def flops(texts: list[str], *, pair: int = 0) -> float:
    """Of embedding these texts, or of scoring each with a query of `pair` tokens."""
    lengths = [length + pair for length in lengths_of(texts)]
    return Workload("", "", "dense", texts, lengths).flops(SHAPES["full"])


def projection() -> list[dict[str, Any]]:
    """A row for each GPU: tokens a second, dollars a million, and two requests' milliseconds."""
    share = shares()
    chunks, mixed = of_length(1, 512), mixed_texts(320)
    tokens = sum(lengths_of(mixed))
    work = {"32 texts": flops(mixed) / 10, "100 documents": flops(of_length(100, 128), pair=12)}
    rows = []
    for gpu in GPUS:
        rate = 1e12 * gpu.tflops * share.mixed / (flops(mixed) / tokens)
        rows.append(
            {
                "gpu": gpu.name,
                "chunks_tokens_per_second": 1e12 * gpu.tflops * share.chunks / flops(chunks) * 512,
                "mixed_tokens_per_second": rate,
                "dollars_per_million": None if gpu.price is None else 1e6 / rate * gpu.price,
                **{
                    name: 1e3 * each / (1e12 * gpu.tflops * share.mixed)
                    for name, each in work.items()
                },
            }
        )
    return rows
