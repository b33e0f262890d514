"""Who may import whom, read from the source: the corridor runs one way."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "worker" / "bge_worker"

# Each module may import those to its left; nobody imports an entry point.
CORRIDOR = [
    *(
        "errors",
        "process",
        "delivery",
        "sdk",
        "startup",
        "settings",
        "schema",
        "attention",
        "packing",
        "model",
    ),
    *(
        "heads",
        "checkpoint",
        "tokenizer",
        "engine",
        "reference",
        "golden",
        "dialects",
        "batcher",
        "response",
    ),
    *("service", "serialize", "memory", "metrics", "jobs", "gate", "connections", "bodies", "app"),
]
# The HTTP server's: they import nothing that brings torch, so that /ping is answered before it.
HTTP = {"serialize", "memory", "metrics", "jobs", "gate", "connections", "bodies", "app"}
BEFORE_TORCH = HTTP | {
    "errors",
    "process",
    "delivery",
    "sdk",
    "startup",
    "settings",
    "schema",
    "dialects",
}
WITHOUT_TORCH = BEFORE_TORCH | {"batcher", "response", "service"}
OF_ONE_MODULE = {
    "reference": {"FlagEmbedding"},
    "sdk": {"runpod"},
    "connections": {"uvicorn", "httptools"},
}
WORKER_PACKAGES = {"torch", "numpy", "tokenizers", "safetensors"}
HTTP_PACKAGES = {"fastapi", "starlette", "pydantic", "orjson", "prometheus_client"}
CLIENT = ROOT / "client" / "bge_client"
# Extras: each folder or module of the client with the packages it may stand on beside its own.
EXTRAS = {
    "cli": {"click", "tqdm"},
    "cli/qdrant": {"click", "tqdm", "qdrant_client", "pydantic"},
    "qdrant": {"qdrant_client"},
    "evaluate": {"ir_measures", "scipy", "jinja2"},
}
CLIENT_SIDE = {"builder", "client", "bge_client"}


def imports(path: Path) -> set[str]:
    """Top-level names a file imports, our own modules as `.name`; annotations' imports aside."""
    found = set()
    for node in without_type_checking(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {f".{name}" for name in names if name and not name.startswith("_")}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names)


def without_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from without_type_checking(child)


def test_every_module_has_its_place_in_the_corridor() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert modules == set(CORRIDOR)


@pytest.mark.parametrize("module", CORRIDOR)
def test_a_module_imports_only_what_comes_before_it(module: str) -> None:
    ours = {name[1:] for name in imports(PACKAGE / f"{module}.py") if name.startswith(".")}
    assert ours <= set(CORRIDOR[: CORRIDOR.index(module)])


@pytest.mark.parametrize("module", CORRIDOR)
def test_the_worker_stands_on_four_packages_and_the_server_on_five(module: str) -> None:
    theirs = {name for name in imports(PACKAGE / f"{module}.py") if not name.startswith(".")}
    allowed = HTTP_PACKAGES if module in HTTP else WORKER_PACKAGES
    assert theirs <= allowed | OF_ONE_MODULE.get(module, set())
    if module in BEFORE_TORCH:
        ours = {name[1:] for name in imports(PACKAGE / f"{module}.py") if name.startswith(".")}
        assert ours <= BEFORE_TORCH
    if module in WITHOUT_TORCH:
        assert "torch" not in theirs


def test_errors_import_nothing() -> None:
    assert imports(PACKAGE / "errors.py") == set()


def test_the_worker_knows_neither_builder_nor_client() -> None:
    for path in (ROOT / "worker").rglob("*.py"):
        assert not imports(path) & CLIENT_SIDE, path.name


@pytest.mark.parametrize(
    "module", sorted(str(path.relative_to(CLIENT))[:-3] for path in CLIENT.rglob("*.py"))
)
def test_the_client_stands_on_requests_and_numpy_and_shares_nothing(module: str) -> None:
    theirs = {name for name in imports(CLIENT / f"{module}.py") if not name.startswith(".")}
    extras = EXTRAS.get(module) or EXTRAS.get(module.split("/")[0], set())
    assert theirs <= {"requests", "urllib3", "numpy"} | extras


def test_the_worker_s_folder_shadows_no_module_of_the_standard_library() -> None:
    scripts = {path.stem for path in (ROOT / "worker").iterdir()}
    assert not scripts & set(sys.stdlib_module_names)
