"""Workers with models in several dtypes, and the probes of two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bge_builder.convert import convert
from bge_client import Client, Probe
from bge_worker.engine.engine import PackedEngine
from bge_worker.settings import Settings
from checkpoints import Shape, write_pair
from conftest import MODELS, settings_in
from fakes.serving import serving

Endpoints = Callable[[str], Client]
# As deep as bge-m3: each layer adds to the error of int8.
DEEP = Shape(width=128, heads=4, feed_forward=512, layers=24)


@pytest.fixture(scope="session")
def folders(
    tmp_path_factory: pytest.TempPathFactory, checkpoints: Path, corpus: list[dict[str, str]]
) -> Path:
    """Embedding models by name: the miniature in two dtypes, random ones in three."""
    folder = tmp_path_factory.mktemp("models")
    texts = [row["text"] for row in corpus]
    write_pair(folder / "deep", DEEP, texts)
    write_pair(folder / "other", DEEP, texts, seed=1)
    for name, dtypes in {
        "deep": ("float32", "float16", "int8"),
        "other": ("float32",),
        "miniature": ("float32", "float16"),
    }.items():
        source = checkpoints if name == "miniature" else folder / name
        for dtype in dtypes:
            target = folder / f"{name}-{dtype}" / MODELS[0]
            convert(source / MODELS[0], target, dtype=dtype, name=f"{name}/bge-m3")
    return folder


@pytest.fixture(scope="session")
def engines(folders: Path) -> Callable[[str], PackedEngine]:
    loaded: dict[str, PackedEngine] = {}

    def engine(name: str) -> PackedEngine:
        if name not in loaded:
            loaded[name] = PackedEngine(settings_in(folders / name, rerank_model=None))
        return loaded[name]

    return engine


@pytest.fixture(scope="session")
def endpoints(engines: Callable[[str], PackedEngine]) -> Iterator[Endpoints]:
    """The client of a worker with the model of that name."""
    clients: dict[str, Client] = {}
    with ExitStack() as stack:

        def endpoint(name: str) -> Client:
            if name not in clients:
                url = stack.enter_context(serving(engines(name), Settings()))
                clients[name] = stack.enter_context(Client(url, timeout=100))
            return clients[name]

        yield endpoint


@pytest.fixture(scope="session")
def deep_probe(endpoints: Endpoints) -> Probe:
    return Probe.record(endpoints("deep-float32"))


@pytest.fixture(scope="session")
def miniature_probe(endpoints: Endpoints) -> Probe:
    return Probe.record(endpoints("miniature-float32"))
