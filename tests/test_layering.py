"""Which package may import which, read from the source. See `docs/architecture.md`.

http, runpod ─▶ serving ─▶ engine        settings, errors, process, startup: everybody's
retrieval, builder ─▶ client             within retrieval: cli ─▶ migration, evaluation, shadow
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT

WORKER = ROOT / "worker"
CLIENT = ROOT / "client" / "bge_client"
RETRIEVAL = ROOT / "retrieval" / "bge_retrieval"

# Each package of the worker with the other packages it may import, of ours and of others.
ROOMS = {
    "": set(),
    "engine": set(),
    "serving": {"engine"},
    "http": {"serving", "engine"},
    "runpod": set(),
}
PACKAGES = {
    "": set(),
    "engine": {"torch", "numpy", "tokenizers", "safetensors"},
    "serving": {"numpy", "msgspec"},
    "http": {"starlette", "msgspec", "orjson", "prometheus_client"},
    "runpod": set(),
}
PACKAGES_OF_ONE_MODULE = {
    "engine/reference": {"FlagEmbedding"},
    "http/connections": {"uvicorn", "httptools"},
    "http/server": {"uvicorn"},
    "runpod/job_scaler": {"runpod"},
}
# Imported before torch, so that /ping is answered before the models load: they and the modules
# they import must not import torch.
BEFORE_TORCH = ("http/app", "http/connections", "runpod/job_scaler", "settings", "startup")
# Of the client: each folder or module that needs an extra, with the packages of that extra.
CLIENT_EXTRAS = {
    "async_client": {"httpx2"},
    "async_transport": {"httpx2", "anyio"},
    "cli": {"click", "tqdm"},
}
# Of retrieval: what a folder may import beyond the modules at the top, and beyond PACKAGES.
RETRIEVAL_ROOMS = {
    "": set(),
    "bulk": set(),
    "migration": set(),
    "evaluation": set(),
    "shadow": set(),
    "cli": {"bulk", "migration", "evaluation", "shadow"},
    "integrations": set(),
}
RETRIEVAL_PACKAGES = {"bge_client", "numpy", "qdrant_client"}
RETRIEVAL_EXTRAS = {
    "bulk": {"pyarrow", "scipy"},
    "bulk/engine": {"bge_worker", "torch"},
    "bulk/ray_pipeline": {"pyarrow", "ray"},
    "evaluation": {"ir_measures", "scipy", "jinja2"},
    "cli": {"click", "pydantic", "rich"},
    "integrations": {"haystack", "langchain_core", "langchain_qdrant", "llama_index", "pydantic"},
    "chunks": {"semantic_text_splitter"},
    "tokens": {"tokenizers"},
}
# Of the client, what retrieval may import from: modules whose names are public and stay.
PUBLIC_CLIENT = {
    *("", "cli", "codec", "deadline", "providers.environment", "providers.probe", "redaction"),
    *("results", "retry", "strict_json"),
}


def modules(package: Path) -> list[str]:
    paths = sorted(package.rglob("*.py"))
    return [path.relative_to(package).with_suffix("").as_posix() for path in paths]


def imports(package: Path, module: str) -> Iterator[str]:
    """Names of the modules that `module` imports, annotations' imports aside.

    Modules of the package itself as "room/module"; of others the top-level name.
    """
    folder = module.split("/")[:-1]
    for node in without_type_checking(ast.parse((package / f"{module}.py").read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = [*folder[: len(folder) + 1 - node.level], *(node.module or "").split(".")]
            path = "/".join(part for part in base if part)
            if (package / f"{path}.py").exists():
                yield path
            else:  # a package: its modules are named behind `import`
                names = [f"{path}/{alias.name}".strip("/") for alias in node.names]
                yield from (name for name in names if (package / f"{name}.py").exists())
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def without_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from without_type_checking(child)


def split(package: Path, module: str) -> tuple[set[str], set[str]]:
    """The modules of its own package that `module` imports, and the packages of others."""
    names = set(imports(package, module))
    ours = {name for name in names if (package / f"{name}.py").exists()}
    return ours, names - ours - set(sys.stdlib_module_names)


def room(module: str) -> str:
    return module.split("/")[0] if "/" in module else ""


@pytest.mark.parametrize("module", modules(WORKER / "bge_worker"))
def test_imports_of_the_worker_go_one_way(module: str) -> None:
    ours, others = split(WORKER / "bge_worker", module)
    assert {room(name) for name in ours} <= ROOMS[room(module)] | {"", room(module)}
    assert others <= PACKAGES[room(module)] | PACKAGES_OF_ONE_MODULE.get(module, set())


@pytest.mark.parametrize("module", BEFORE_TORCH)
def test_ping_needs_no_torch(module: str) -> None:
    reached, waiting = set(), [module]
    while waiting:
        reached.add(name := waiting.pop())
        ours, others = split(WORKER / "bge_worker", name)
        assert not others & {"torch", "tokenizers"}, name
        waiting += ours - reached


def test_the_worker_without_extras_has_the_packages_of_the_engine() -> None:
    project = tomllib.loads((WORKER / "pyproject.toml").read_text("utf-8"))["project"]
    assert {pin.partition("==")[0] for pin in project["dependencies"]} == PACKAGES["engine"]


def test_the_worker_imports_no_other_package_of_the_repository() -> None:
    for module in modules(WORKER):
        others = {"bge_builder", "bge_client", "bge_retrieval"}
        assert not set(imports(WORKER, module)) & others, module


def test_the_builder_imports_no_retrieval() -> None:
    builder = ROOT / "builder" / "bge_builder"
    for module in modules(builder):
        assert "bge_retrieval" not in imports(builder, module), module


@pytest.mark.parametrize("module", modules(CLIENT))
def test_the_client_needs_requests_and_numpy_alone(module: str) -> None:
    extras = CLIENT_EXTRAS.get(module) or CLIENT_EXTRAS.get(room(module), set())
    assert split(CLIENT, module)[1] <= {"requests", "urllib3", "numpy"} | extras


@pytest.mark.parametrize("module", [name for name in modules(RETRIEVAL) if name != "__init__"])
def test_imports_of_retrieval_go_one_way(module: str) -> None:
    ours, others = split(RETRIEVAL, module)
    assert {room(name) for name in ours} <= RETRIEVAL_ROOMS[room(module)] | {"", room(module)}
    extras = RETRIEVAL_EXTRAS.get(module) or RETRIEVAL_EXTRAS.get(room(module) or module, set())
    assert others <= RETRIEVAL_PACKAGES | extras


@pytest.mark.parametrize("module", modules(RETRIEVAL))
def test_retrieval_uses_public_names_of_the_client(module: str) -> None:
    tree = ast.parse((RETRIEVAL / f"{module}.py").read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bge_client"):
            assert (node.module or "").removeprefix("bge_client").lstrip(".") in PUBLIC_CLIENT
            names = {alias.name for alias in node.names} - {"__version__"}
            assert not any(name.startswith("_") for name in names)


def test_the_worker_s_folder_hides_no_module_of_the_standard_library() -> None:
    """`python worker/handler.py` puts that folder first on the path."""
    names = {path.stem for path in WORKER.iterdir()}
    assert not names & set(sys.stdlib_module_names)
