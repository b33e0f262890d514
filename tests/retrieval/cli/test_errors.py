"""Errors of all commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from bge_client.cli import exit_codes
from bge_retrieval import MigrationError
from commands import COURSE, EXAMPLES, Run


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["search", "x", "--collection", "c"], 2, "pass --path FOLDER or --qdrant-url, or set"),
        (["search", "x", "--collection", "nope", "--path", "{}"], 2, "Existing: course"),
        (["search", "x", "--collection", "course", "--path", "{}", "--filter", "{{}}x"], 2,
         "`--filter` is not a valid Qdrant filter"),
        (["search", "x", "--collection", "c", "--path", "/nope"], 2, "no collections in /nope"),
        (["search", " ", "--collection", "course", "--path", "{}"], 1, "`query` must not be"),
        (["evaluate"], 2, "pass DATASET or --shadow"),
        (["migrate", "course", "--in-place", "--add-dense", "sparse", "--path", "{}"], 2,
         "`add_dense` (--add-dense) must be a name other than `sparse`"),
        (["evaluate", str(COURSE), "--path", "{}", "--systems", "bm25@x"], 2,
         "a system must be of dense, sparse"),
        (["evaluate", str(COURSE), "--path", "{}"], 2, "pass --collection, or --systems dense@"),
        (["evaluate", str(EXAMPLES), "--path", "{}", "--collection", "course"], 2,
         "queries.jsonl cannot be read: No such file"),
        (["evaluate", str(COURSE), "--path", "{}", "--systems", "jina@course"], 2, "JINA_API_KEY"),
        (["migrate", "course", "--path", "{}"], 2, "pass SOURCE and TARGET"),
        (["migrate", "course", "x", "--dry-run", "--text-field", "body", "--path", "{}"], 2,
         "no point of `course` has a text at `body`. Their payloads have: text."),
        (["migrate", "course", "x", "--dry-run", "--price", "nan", "--path", "{}"], 2,
         "`price` must be 0 or more. Given: nan"),
        (["search", "x", "--collection", "course", "--path", "{}", "--filter", "[" * 100_000], 2,
         "`--filter` is not a valid Qdrant filter"),
        (["migrate", "course", "x", "--in-place", "--path", "{}"], 2, "TARGET means nothing"),
        (["migrate", "course", "x", "--dense-name", "y", "--path", "{}"], 2,
         "--dense-name means nothing without --in-place"),
        (["migrate", "--drop-old", "--alias", "y", "--dry-run", "--path", "{}"], 2,
         "pass only one of --dry-run, --drop-old"),
        (["migrate", "course", "--in-place", "--dry-run", "--path", "{}"], 2,
         "pass only one of --dry-run, --in-place"),
        (["migrate", "--rollback", "--path", "{}"], 2, "pass --alias"),
        (["migrate", "--rollback", "--alias", "y", "--path", "{}"], 2, "there is no alias `y`"),
        (["migrate", "--rollback", "--drop-old", "--path", "{}"], 2, "only one of --rollback, --d"),
        (["migrate", "course", "x", "--snapshot", "--path", "{}"], 2,
         "a snapshot needs a Qdrant server"),
        (["migrate", "course", "--rollback", "--path", "{}"], 2,
         "no vectors were added to `course` in place"),
        (["migrate", "--drop-vector", "jina", "--path", "{}"], 2, "pass SOURCE"),
        (["migrate", "course", "x", "--add-dense", "y", "--path", "{}"], 2,
         "--add-dense means nothing without --in-place"),
        (["index", "--collection", "new", "--path", "{}"], 1, "line 2 is not JSON"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_with_its_exit_code(
    run: Run, small: Path, arguments: list[str], code: int, message: str
) -> None:
    command = [argument.format(small) if "{" in argument else argument for argument in arguments]
    result = run(*command, stdin='{"_id": 1, "text": "море"}\n{\n')
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["search", "x", "--collection", ""], "--collection"),
        (["index", "--collection", ""], "--collection"),
        (["migrate", "a", "b", "--dry-run", "--price", "-1"], "--price"),
        (["evaluate", str(COURSE), "--jina-price", "-1"], "--jina-price"),
    ],
)
def test_an_invalid_value_names_its_option(run: Run, arguments: list[str], option: str) -> None:
    result = run(*arguments, "--path", "unused")
    assert (result.exit_code, f"Invalid value for '{option}'" in result.stderr) == (2, True)


def test_a_migration_error_has_exit_code_6(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, exit_codes():
        raise MigrationError("3 points changed")
    assert caught.value.code == 6
    assert capsys.readouterr().err == "bge: MigrationError: 3 points changed\n"
