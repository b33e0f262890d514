"""What a route of any dialect consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ...engine.config import ModelInfo, Role
from ...errors import WorkerError
from ...serving.requests import InferenceRequest
from ...settings import Settings


class RequestBody(Protocol):
    """A `validation.Body` that can become a request."""

    def to_request(self, model: ModelInfo, settings: Settings) -> InferenceRequest: ...


class Dialect(NamedTuple):
    """How errors look: `error_body` builds the JSON object, of type `error_type`."""

    error_body: Callable[[WorkerError], Mapping[str, Any]]
    error_type: type


@dataclass(frozen=True)
class Route:
    """A POST route for inference.

    Of several routes on one path, a body goes to the first whose `key` field it holds.
    `build_reply` turns the native reply into the dialect's.
    """

    paths: tuple[str, ...]
    key: str
    dialect: Dialect
    role: Role
    body: type[Any]  # of RequestBody
    build_reply: Callable[[Mapping[str, Any]], object]
    reply: Any  # its type, for OpenAPI
