"""Shared by the tests of `bge`'s commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from click.testing import Result

from conftest import ROOT

EXAMPLES = ROOT / "retrieval" / "examples"
COURSE = EXAMPLES / "course"
FIELDS = ["--text-field", "title", "--text-field", "text"]
Run = Callable[..., Result]


def report(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout.splitlines()[-1]))
