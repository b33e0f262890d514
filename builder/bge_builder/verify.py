"""Is a runtime folder what it says, and does it answer as its authors published?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bge_worker.engine.checkpoint import Manifest, check_files
from bge_worker.engine.engine import Engine, Result
from bge_worker.serving.fitness import (
    EMBED,
    RERANK,
    Golden,
    embed_values,
    has_golden_values,
    rerank_values,
)
from bge_worker.serving.requests import Work
from bge_worker.serving.service import load_engine
from bge_worker.settings import Settings


class Verified(NamedTuple):
    """`golden` is empty where the folder does not hold the published weights."""

    manifest: Manifest
    golden: list[Golden]


def verify(folder: Path) -> Verified:
    """Check every hash, load the folder strictly, and compare golden values if there are any.

    Raises:
        StartError: a file is not what the manifest says, or the folder does not load.
    """
    manifest = Manifest.read(folder)
    check_files(folder, manifest, every_byte=True)
    engine = load_engine(settings_for(folder, manifest))  # warms up: every output is computed
    known = has_golden_values(engine.models[manifest.role])
    return Verified(manifest, golden_values(engine) if known else [])


def settings_for(folder: Path, manifest: Manifest) -> Settings:
    settings = Settings(
        embed_model=None,
        rerank_model=None,
        engine="packed" if manifest.layout == "fused" else "flagembedding",
    )
    if manifest.role == "embed":
        return replace(settings, embed_model=folder)
    return replace(settings, rerank_model=folder)


def golden_values(engine: Engine) -> list[Golden]:
    """Of the models that are loaded."""
    values: list[Golden] = []
    if "embed" in engine.models:
        values += embed_values(run(engine, EMBED))
    if "rerank" in engine.models:
        values += rerank_values([logit for work in RERANK for logit in run(engine, work)])
    return values


def run(engine: Engine, work: Work) -> list[Result]:
    return list(engine.run(work.outputs, engine.encode(work, 0, len(work.texts))))
