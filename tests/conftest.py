from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bge_builder.convert import convert
from bge_builder.miniature import build
from bge_client import Client
from bge_worker.engine.engine import Engine, load_engine
from bge_worker.serving.service import Service
from bge_worker.settings import EngineName, Settings
from fakes.serving import serving

# One process for each core (`make test`): PyTorch's own threads would only be in each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("bge-m3", "bge-reranker-v2-m3")


def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores, since many tests wait for other processes: 12% less time."""
    return min(4, (os.cpu_count() or 1) + 1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--images", action="store_true", help="build and run the images")
    parser.addoption("--docs", action="store_true", help="run the commands of the documentation")
    parser.addoption("--clients", action="store_true", help="call the clients of .venv-clients-*")
    parser.addoption("--frameworks", action="store_true", help="use those of .venv-frameworks-*")
    parser.addoption("--observability", action="store_true", help="run Prometheus")
    parser.addoption("--long", action="store_true", help="parity at 8,192 tokens for every shape")


def settings_in(folder: Path, **changes: Any) -> Settings:
    """Settings of a worker whose runtime folders lie in `folder`."""
    defaults = {
        "embed_model": folder / MODELS[0],
        "rerank_model": folder / MODELS[1],
        "device": "cpu",  # fp32 and the same on every machine, unless a test is for a GPU
    }
    return Settings(**(defaults | changes))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature in the Hub's format."""
    folder = tmp_path_factory.mktemp("checkpoints") / "miniature"
    build(folder)
    return folder


@pytest.fixture(scope="session")
def runtimes(
    checkpoints: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[EngineName], Path]:
    """The miniature's runtime folders for an engine."""
    folders: dict[str, Path] = {}

    def runtime(engine: EngineName) -> Path:
        if engine not in folders:
            folders[engine] = tmp_path_factory.mktemp(engine)
            for model in MODELS:
                name = f"miniature/{model}"
                convert(checkpoints / model, folders[engine] / model, engine=engine, name=name)
        return folders[engine]

    return runtime


@pytest.fixture(scope="session", params=["packed", "flagembedding"])
def engine(request: pytest.FixtureRequest, runtimes: Callable[[EngineName], Path]) -> Engine:
    """Each engine in turn: a test with this fixture runs with both."""
    return load_engine(settings_in(runtimes(request.param), engine=request.param))


@pytest.fixture(scope="session")
def packed(runtimes: Callable[[EngineName], Path]) -> Engine:
    return load_engine(settings_in(runtimes("packed")))


@pytest.fixture
def service(engine: Engine) -> Iterator[Service]:
    """A service with the default limits, on each engine."""
    service = Service(engine, Settings())
    yield service
    service.close(timeout=10)


@pytest.fixture
def packed_service(packed: Engine) -> Iterator[Service]:
    """A service with the default limits, where the engine makes no difference."""
    service = Service(packed, Settings())
    yield service
    service.close(timeout=10)


@pytest.fixture(scope="session")
def corpus() -> list[dict[str, str]]:
    lines = (ROOT / "builder" / "bge_builder" / "corpus.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(autouse=True)
def no_known_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redact no key of an earlier test."""
    monkeypatch.setattr("bge_client.redaction._secrets", set())


# ------------------------------------------------------------------------- Qdrant's tests


@pytest.fixture(scope="session")
def passages() -> list[dict[str, Any]]:
    """The course material of the examples."""
    path = ROOT / "retrieval" / "examples" / "course" / "corpus.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def served(packed: Engine) -> Iterator[str]:
    """The address of the HTTP server with the miniature."""
    with serving(packed, Settings()) as url:
        yield url


@pytest.fixture(scope="module")
def worker(served: str) -> Iterator[Client]:
    with Client(served, timeout=60) as client:
        yield client


@pytest.fixture
def store() -> Iterator[Any]:
    """Qdrant's local mode, in memory."""
    from qdrant_client import QdrantClient

    from bge_retrieval import Store

    with Store(QdrantClient(":memory:")) as store:
        yield store


@pytest.fixture
def run(served: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`bge` in this process, with the miniature's endpoint and nothing else in its environment."""
    from click.testing import CliRunner, Result

    from bge_client.cli import bge

    for name in os.environ:
        if name.startswith(("BGE_", "RUNPOD_", "QDRANT_", "JINA_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("BGE_EMBEDDINGS_ENDPOINT", served)

    def invoke(*arguments: object, stdin: str = "") -> Result:
        result = CliRunner().invoke(bge, [*map(str, arguments)], input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke
