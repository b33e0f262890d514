from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from bge_worker.engine.engine import Engine
from bge_worker.settings import Settings
from fakes.engine import FakeEngine
from fakes.serving import serving


@pytest.fixture(scope="module")
def url(packed: Engine) -> Iterator[str]:
    """The address of a server with the miniature and default settings."""
    with serving(packed, Settings()) as url:
        yield url


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    engine = FakeEngine()
    yield engine
    engine.gate.set()


@pytest.fixture
def serve(engine: FakeEngine) -> Iterator[Callable[..., str]]:
    """Start a server around the fake engine: options of `serving`, and fields of `Settings`."""

    def start(**options: Any) -> str:
        names = options.keys() & {"timeouts", "listener", "max_connections", "held"}
        of_server = {name: options.pop(name) for name in names}
        return stack.enter_context(serving(engine, Settings(**options), **of_server))

    with ExitStack() as stack:
        yield start
        engine.gate.set()
