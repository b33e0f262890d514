"""Every documented command exists: a phony target without a rule silently does nothing."""

from __future__ import annotations

import re
import subprocess

import pytest

from conftest import ROOT

MAKEFILES = {folder: ROOT / folder / "Makefile" for folder in (".", "tests", "benchmarks")}
TARGET = re.compile(r"^([a-z][a-z0-9 -]*):(?!=)", re.MULTILINE)
# The targets that people use; a folder's own help lists its others.
SHOWN = {
    "Start": ["setup", "run", "serve", "verify"],
    "Deploy": ["deploy", "undeploy", "field-report"],
    "Develop": ["test", "check", "docs"],
}


def rules(folder: str) -> set[str]:
    path = MAKEFILES[folder]
    targets = TARGET.findall(path.read_text("utf-8")) if path.exists() else []
    return {name for target in targets for name in target.split()}


RULES = {name for folder in MAKEFILES for name in rules(folder)}


@pytest.mark.parametrize("folder", MAKEFILES)
def test_every_phony_target_has_a_rule(folder: str) -> None:
    path = MAKEFILES[folder]
    lines = re.findall(r"^\.PHONY: (.+)$", path.read_text("utf-8") if path.exists() else "", re.M)
    phony = {name for line in lines for name in line.split()}
    assert phony - {"FORCE"} == rules(folder)


def test_help_shows_the_targets_that_people_use() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    groups = [block.splitlines() for block in shown.stdout.strip().split("\n\n")]
    targets = {lines[0]: [line.split()[0] for line in lines[1:]] for lines in groups}
    assert {name: targets[name] for name in SHOWN} == SHOWN


@pytest.mark.parametrize(("name", "value"), [("MODELS", "typo"), ("ENGINE", ""), ("TORCH", "gpu")])
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    refused = subprocess.run(["make", "help", f"{name}={value}"], cwd=ROOT, capture_output=True)
    assert refused.returncode == 2
    assert f"{name} must be ".encode() in refused.stderr


def test_the_root_delegates_heavy_checks() -> None:
    heavy = sorted(rules("tests") - {"help", "setup-test"})
    command = ["make", "-n", *heavy]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.count("-C tests") == len(heavy)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_pages_name_existing_commands(page: str) -> None:
    commands = re.findall(r"`make ([a-z0-9-]+)", (ROOT / page).read_text("utf-8"))
    assert set(commands) <= RULES
