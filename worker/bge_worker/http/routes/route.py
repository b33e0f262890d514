"""What a route of any dialect consists of, and the errors that several dialects share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from ...engine.config import Role
from ...errors import OverloadedError, WorkerError

if TYPE_CHECKING:  # imports torch
    from ...serving.service import Service


class Dialect(NamedTuple):
    """How errors look: `error_body` builds the JSON object, of type `error_type`.

    `invalid_status` is the status of a body that is not valid.
    """

    error_body: Callable[[WorkerError], Mapping[str, Any]]
    error_type: type
    invalid_status: int = 422

    def status(self, error: WorkerError) -> int:
        return self.invalid_status if error.status == 422 else error.status


class ProviderError(TypedDict):
    """Cohere's clients read `message`, Jina's `detail`, TEI's `error` and `error_type`."""

    error: str
    error_type: Literal["Validation", "Overloaded", "Backend"]
    message: str
    detail: str


def provider_error(error: WorkerError) -> ProviderError:
    message = str(error)
    error_type: Literal["Validation", "Overloaded", "Backend"] = "Validation"
    if error.status >= 500:
        error_type = "Backend"
    elif isinstance(error, OverloadedError):
        error_type = "Overloaded"
    return {"error": message, "error_type": error_type, "message": message, "detail": message}


PROVIDER = Dialect(provider_error, ProviderError)


@dataclass(frozen=True)
class Route:
    """A POST route for inference.

    Of several routes on one path, a body goes to the first whose `key` it holds, a field or a path
    of fields, else to the last; errors before that are in the dialect of the first. `body` is the
    type of the body, with `to_request(model, settings)` and `to_reply(native reply)`, which
    returns the dialect's reply, of type `reply`.
    """

    paths: tuple[str, ...]
    key: str
    dialect: Dialect
    role: Role
    body: type[Any]
    reply: Any


@dataclass(frozen=True)
class TextRoute:
    """A POST route that needs no inference: `body` has `answer(service)`, which returns the reply.

    `key` is that of `Route`.
    """

    paths: tuple[str, ...]
    key: str
    dialect: Dialect
    body: type[Any]
    reply: Any


@dataclass(frozen=True)
class InfoRoute:
    """A GET route that describes the service. `build` gets the parameters of the path."""

    paths: tuple[str, ...]
    dialect: Dialect
    build: Callable[[Service, Mapping[str, str]], object]
    reply: Any
