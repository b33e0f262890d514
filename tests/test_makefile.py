"""Every documented command exists: a phony target without a rule silently does nothing."""

from __future__ import annotations

import re

import pytest

from conftest import ROOT

MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
RULES = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    "client/README.md",
    "retrieval/README.md",
)


def test_every_phony_target_has_a_rule() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    assert set(phony.split()) == RULES


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_existing_commands(page: str) -> None:
    commands = re.findall(r"`make ([a-z-]+)", (ROOT / page).read_text("utf-8"))
    assert set(commands) <= RULES
