"""Every block of the pages is run or says why not; every link leads somewhere."""

from __future__ import annotations

import re

import pytest

from pages import PAGES, ROOT, RUN_LANGUAGES, SHELL_LANGUAGES, Page

README_BYTES = 6144
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_the_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= README_BYTES


@every_page
def test_a_block_is_run_or_says_why_not(page: Page) -> None:
    for block in page.blocks:
        where = f"{page.name}:{block.line}"
        assert block.language not in SHELL_LANGUAGES, f"{where}: name it sh"
        if block.language in RUN_LANGUAGES and block.marker and block.marker.kind == "run by":
            assert (ROOT / block.marker.value).is_file(), f"{where}: no {block.marker.value}"


@every_page
def test_links_lead_to_files_and_headings(page: Page) -> None:
    for link in page.links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.path.parent / name).resolve() if name else page.path
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in Page(target).anchors, f"{page.name}: {link}"


@every_page
def test_pages_name_existing_commands(page: Page) -> None:
    makefiles = [ROOT / "Makefile", *ROOT.glob("*/Makefile")]
    source = "\n".join(makefile.read_text("utf-8") for makefile in makefiles)
    rules = set(re.findall(r"^([a-z0-9-]+):", source, re.MULTILINE))
    assert set(re.findall(r"(?:^|`|&& )make ([a-z0-9-]+)", page.text, re.MULTILINE)) <= rules
