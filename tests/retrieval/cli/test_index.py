"""`bge index`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from commands import COURSE, Run, report


def test_a_second_index_run_writes_nothing(run: Run, indexed: Path) -> None:
    again = run("index", COURSE / "corpus.jsonl", "--collection", "course", "--path", indexed)
    assert (report(again)["unchanged"], report(again)["written"]) == (184, 0)


def test_chunks_by_the_server_and_by_a_file_are_the_same(
    run: Run, tmp_path: Path, checkpoints: Path, passages: list[dict[str, Any]]
) -> None:
    text = "\n\n".join(passage["text"] for passage in passages[:8])
    source = tmp_path / "long.jsonl"
    source.write_text(json.dumps({"_id": "long", "title": "Заголовок", "text": text}), "utf-8")
    arguments = ["index", source, "--collection", "c", "--path", tmp_path / "data", "--chunk"]
    arguments += ["--chunk-tokens", 128, "--chunk-overlap", 0, "--title-field", "title"]
    written = report(run(*arguments))["written"]
    assert written > 4
    tokenizer = checkpoints / "bge-m3" / "tokenizer.json"
    assert report(run(*arguments, "--tokenizer", tokenizer))["unchanged"] == written
    search = ["search", "море", "--collection", "c", "--path", tmp_path / "data", "--json"]
    (hit,) = map(json.loads, run(*search, "--neighbours", 1).stdout.splitlines())
    assert hit["payload"]["_chunk"]["text"].startswith("Заголовок\n")
    assert hit["neighbours"]


def test_options_of_chunks_need_chunk(run: Run, tmp_path: Path) -> None:
    result = run("index", "--collection", "c", "--path", tmp_path, "--chunk-overlap", 0)
    assert result.exit_code == 2
    assert "need --chunk" in result.output
