"""`bge bulk`: its command line."""

from __future__ import annotations

import shlex
from pathlib import Path

import yaml

from bge_retrieval.cli.bulk import bulk

ROOT = Path(__file__).resolve().parents[3]


def test_the_ray_job_has_a_valid_command_and_the_pinned_ray() -> None:
    spec = yaml.safe_load((ROOT / "deploy" / "bulk" / "rayjob.yaml").read_text("utf-8"))["spec"]
    program, name, *arguments = shlex.split(spec["entrypoint"])
    assert (program, name) == ("bge", "bulk")
    bulk.make_context(name, arguments)
    pins = (ROOT / "tests" / "retrieval" / "bulk" / "requirements.txt").read_text("utf-8")
    assert f"ray[data]=={spec['rayClusterSpec']['rayVersion']}\n" in pins
