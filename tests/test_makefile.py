"""Every documented command exists: a phony target without a rule silently does nothing."""

from __future__ import annotations

import re

import pytest

from conftest import ROOT

FOLDERS = (ROOT, ROOT / "benchmarks")
MAKEFILES = {folder.name: (folder / "Makefile").read_text("utf-8") for folder in FOLDERS}
RULE = re.compile(r"^([a-z-]+(?: [a-z-]+)*):", re.MULTILINE)  # `bench load soak:` has three


def rules(makefile: str) -> set[str]:
    return set(" ".join(RULE.findall(makefile)).split())


PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    "client/README.md",
    "retrieval/README.md",
)


@pytest.mark.parametrize("makefile", MAKEFILES.values(), ids=MAKEFILES)
def test_every_phony_target_has_a_rule(makefile: str) -> None:
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert set(phony.split()) - {"FORCE"} == rules(makefile)


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_existing_commands(page: str) -> None:
    commands = re.findall(r"`make ([a-z-]+)", (ROOT / page).read_text("utf-8"))
    assert set(commands) <= set.union(*map(rules, MAKEFILES.values()))
