"""What is known of a model without its weights. Imports no torch: requests are read before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["embed", "rerank"]


@dataclass(frozen=True)
class Config:
    """XLM-RoBERTa's sizes and special tokens, in Hugging Face's names.

    `max_position_embeddings` counts the rows of the position table, as in config.json: 8194 for
    bge-m3, of which the first `position_offset` are never used.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    layer_norm_eps: float
    bos_token_id: int
    pad_token_id: int
    eos_token_id: int
    unk_token_id: int

    @property
    def position_offset(self) -> int:
        """The position of a text's first token."""
        return self.pad_token_id + 1

    @property
    def max_length(self) -> int:
        """Tokens of the longest text, special tokens included."""
        return self.max_position_embeddings - self.position_offset

    @property
    def head_shape(self) -> tuple[int, int]:
        """Number of attention heads, size of each."""
        return self.num_attention_heads, self.hidden_size // self.num_attention_heads

    @property
    def special_ids(self) -> tuple[int, ...]:
        return (self.bos_token_id, self.pad_token_id, self.eos_token_id, self.unk_token_id)


@dataclass(frozen=True)
class ModelInfo:
    """One model, as `info` reports it. `width` is the number of dimensions D."""

    model: str
    revision: str | None
    fingerprint: str
    width: int
    vocab_size: int
    max_length: int
