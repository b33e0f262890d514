"""`cards.toml`: what cards compute and cost, and what hosted models cost."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from bge_client import ConfigurationError

Task = Literal["embed", "rerank"]
FILE = Path(__file__).with_name("cards.toml")


class PlanError(ConfigurationError):
    """The scenario, a file that it names or an option is not valid."""


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a micro-batch: `batch_seconds`, `request_seconds` for each request that it
    begins, and its tokens at `tokens_per_second`."""

    tokens_per_second: float
    batch_seconds: float
    request_seconds: float


class Card(msgspec.Struct, frozen=True):
    """`tflops` are published. `pool` is RunPod's, None if RunPod Serverless has no such card."""

    name: str
    memory_gb: int
    tflops: float
    pool: str | None = None


class Measured(Speed, frozen=True, kw_only=True):
    card: str


class Hosted(msgspec.Struct, frozen=True):
    """Dollars per million tokens; `rerank` is None if there is no reranker."""

    name: str
    embed: float
    rerank: float | None = None
    same_model: bool = False


class Catalogue(msgspec.Struct, frozen=True):
    """`pools`: dollars per second of a worker."""

    measured: Measured
    pools: dict[str, float]
    cards: list[Card]
    hosted: list[Hosted]

    def card(self, name: str) -> Card:
        """Return a card by its name. Raises PlanError if RunPod Serverless has no such card."""
        for card in self.cards:
            if card.name.lower() == name.lower() and card.pool is not None:
                return card
        names = ", ".join(card.name for card in self.cards if card.pool is not None)
        raise PlanError(f"`card` must be one of {names}. Given: {name[:40]}")

    def price(self, card: Card) -> float:
        """Return the dollars of a second of a worker with that card, which has a pool."""
        assert card.pool is not None
        return self.pools[card.pool]

    def is_measured(self, card: Card) -> bool:
        return card.name == self.measured.card

    def speed(self, card: Card) -> Speed:
        """Return the measured speed, or the one assumed from the ratio of the published peaks."""
        measured = self.measured
        ratio = card.tflops / self.card(measured.card).tflops
        return Speed(
            tokens_per_second=measured.tokens_per_second * ratio,
            batch_seconds=measured.batch_seconds,
            request_seconds=measured.request_seconds,
        )


@cache
def catalogue() -> Catalogue:
    return msgspec.toml.decode(FILE.read_bytes(), type=Catalogue)
