"""The pages of the documentation: their code blocks, links, headings and tables.

A block of `sh` or `python` is run by `make test-docs`, unless a comment before it says otherwise:

    <!-- not run: the reason -->
    <!-- run by: tests/the_test_that_runs_it.py -->

As the first line of a page, the comment applies to every block of it. A block of `text` right after
one that is run is its output, in which … stands for anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RUN_LANGUAGES = ("sh", "python")
SHELL_LANGUAGES = ("bash", "console", "shell", "zsh")  # what a reader would also paste
MARKER = r"<!-- (not run|run by): (.+?) -->"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r"\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


class Marker(NamedTuple):
    kind: str
    value: str


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    code: str
    marker: Marker | None
    output: str | None

    @property
    def is_run(self) -> bool:
        return self.language in RUN_LANGUAGES and self.marker is None


@dataclass(frozen=True)
class Page:
    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text("utf-8")

    @property
    def blocks(self) -> Iterator[Block]:
        of_page = re.match(MARKER + r"\n+# ", self.text)
        for fence in FENCE.finditer(self.text):
            before = self.text[: fence.start()]
            marker = re.search(MARKER + r"\n+\Z", before) or of_page
            output = OUTPUT.match(self.text, fence.end())
            yield Block(
                line=before.count("\n") + 1,
                language=fence[1],
                code=fence[2],
                marker=Marker(marker[1], marker[2]) if marker else None,
                output=output[1] if output else None,
            )

    @cached_property
    def prose(self) -> str:
        """The text without its code blocks."""
        return FENCE.sub("", self.text)

    @property
    def links(self) -> list[str]:
        return LINK.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """The fragments of the headings, as GitHub and MkDocs write them."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
        return {re.sub(r"\s", "-", heading) for heading in plain}

    def section(self, heading: str) -> str:
        """Return the text under a heading, up to the next one of its level."""
        level = heading.partition(" ")[0]
        after = self.text.partition(f"\n{heading}\n")[2]
        assert after, f"{self.name} has no heading {heading!r}"
        return re.split(rf"^#{{1,{len(level)}}} ", after, maxsplit=1, flags=re.MULTILINE)[0]

    def table(self, heading: str) -> list[list[str]]:
        """Return the cells of the first table under a heading, without its head."""
        lines = self.section(heading).splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("| ---"))
        rows = []
        for line in lines[start + 1 :]:
            if not line.startswith("|"):
                break
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
        return rows


NAMES = ("README.md", "CONTRIBUTING.md", "client/README.md", "retrieval/README.md")
PAGES = [Page(ROOT / name) for name in NAMES]
PAGES += [Page(path) for path in sorted((ROOT / "docs").rglob("*.md"))]
