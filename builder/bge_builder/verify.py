"""Check that a runtime folder matches its manifest and computes the published values."""

from __future__ import annotations

from pathlib import Path

from bge_worker.engine.engine import load_engine
from bge_worker.engine.manifest import ENGINES, Manifest, check_files
from bge_worker.errors import StartError
from bge_worker.serving.golden_values import GoldenValue, golden_values
from bge_worker.settings import Settings


def verify(folder: Path) -> tuple[Manifest, list[GoldenValue]]:
    """Check every hash, load the model and compute its golden values.

    There are none unless the weights are the published ones.

    Raises:
        StartError: a file differs from the manifest, or the model does not load or compute.
    """
    manifest = Manifest.read(folder)
    check_files(folder, manifest, every_byte=True)
    settings = Settings(
        embed_model=folder if manifest.role == "embed" else None,
        rerank_model=folder if manifest.role == "rerank" else None,
        engine=ENGINES[manifest.layout],
    )
    engine = load_engine(settings)
    try:
        return manifest, golden_values(engine)
    except RuntimeError as error:
        raise StartError(f"`{folder}`: {error}") from None
