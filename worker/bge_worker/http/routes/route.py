"""What a route of any dialect consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...engine.config import Role
from ...errors import WorkerError


class Dialect(NamedTuple):
    """How errors look: `error_body` builds the JSON object, of type `error_type`.

    `invalid_status` is the status of a body that is not valid.
    """

    error_body: Callable[[WorkerError], Mapping[str, Any]]
    error_type: type
    invalid_status: int = 422

    def status(self, error: WorkerError) -> int:
        return self.invalid_status if error.status == 422 else error.status


@dataclass(frozen=True)
class Route:
    """A POST route for inference.

    Of several routes on one path, a body goes to the first whose `key` field it holds. `body` is
    the type of the body, with `to_request(model, settings)` and `to_reply(native reply)`, which
    returns the dialect's reply, of type `reply`.
    """

    paths: tuple[str, ...]
    key: str
    dialect: Dialect
    role: Role
    body: type[Any]
    reply: Any
