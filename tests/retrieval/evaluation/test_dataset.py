"""Folders in BEIR's layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from bge_client.errors import ConfigurationError
from bge_retrieval.evaluation import Dataset, read_beir


def write_beir(folder: Path, **changed: str | None) -> Path:
    """Write a dataset of two queries and two documents. A file that is None is omitted."""
    contents: dict[str, str | None] = {
        "corpus": '{"_id": "d1", "title": "Море", "text": "о море", "metadata": {"url": "u"}}\n'
        '{"_id": "d2", "title": "", "text": "о суше"}\n',
        "queries": '{"_id": "q1", "text": "море"}\n{"_id": "q2", "text": "суша"}\n',
        "qrels": "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n",
    }
    paths = {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "qrels": "qrels/test.tsv"}
    (folder / "qrels").mkdir()
    for name, content in (contents | changed).items():
        if content is not None:
            (folder / paths[name]).write_text(content, "utf-8")
    return folder


def test_a_beir_folder_is_read(tmp_path: Path) -> None:
    data = read_beir(write_beir(tmp_path))
    assert data.documents == {"d1", "d2"}
    assert data.queries == {"q1": "море"}
    assert data.qrels == {"q1": {"d1": 2, "d2": 0}}
    assert data.left_out == 1


def test_queries_are_drawn_deterministically_in_file_order() -> None:
    names = [f"q{number}" for number in range(100)]
    data = Dataset(frozenset("d"), dict.fromkeys(names, "text"), {name: {"d": 1} for name in names})
    drawn = [*data.draw(20)]
    assert drawn == sorted(drawn, key=names.index) == [*data.draw(20)]
    assert len(drawn) == 20
    assert drawn != names[:20]
    assert data.draw(None) == data.draw(100) == data.draw(101) == data.queries


def test_without_a_corpus_document_ids_are_not_checked(tmp_path: Path) -> None:
    qrels = "query-id\tcorpus-id\tscore\nq2\telsewhere\t1\n"
    data = read_beir(write_beir(tmp_path, corpus=None, qrels=qrels))
    assert data.documents == {"elsewhere"}
    assert data.qrels == {"q2": {"elsewhere": 1}}


def test_without_a_folder_of_judgements_all_queries_are_read(tmp_path: Path) -> None:
    write_beir(tmp_path, qrels=None)
    (tmp_path / "qrels").rmdir()
    data = read_beir(tmp_path)
    assert (data.qrels, [*data.queries], data.left_out) == (None, ["q1", "q2"], 0)


HEADER = "query-id\tcorpus-id\tscore\n"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"queries": None}, "queries.jsonl cannot be read: No such file"),
        ({"qrels": None}, "test.tsv cannot be read: No such file"),
        ({"queries": "\n"}, "queries.jsonl is empty"),
        ({"queries": '{"_id": "q1", "text": "море"}\n\n{'}, "queries.jsonl, line 3, is not JSON"),
        ({"queries": '["q1"]'}, "line 1, must be a JSON object"),
        ({"queries": "[" * 100_000}, "line 1, is not JSON: nested deeper than 100"),
        ({"corpus": '{"_id": %s}' % ("9" * 5000)}, "line 1, is not JSON: Exceeds the limit"),
        (
            {"queries": '{"_id": 1, "text": "море"}'},
            "must have a `_id` that is a string and not blank. Given: int",
        ),
        (
            {"queries": '{"_id": "q1", "text": " "}'},
            "must have a `text` that is a string and not blank. Given: a blank",
        ),
        ({"queries": '{"_id": "q", "text": "a"}\n' * 2}, "line 2, repeats the `_id` of an earlier"),
        ({"corpus": '{"text": "a"}'}, "corpus.jsonl, line 1, must have a `_id`"),
        ({"qrels": "q1\td1\t1\n"}, "test.tsv, line 1, must be a header"),
        ({"qrels": HEADER + "q1\td1\n"}, "line 2, must be query-id, corpus-id and an integer"),
        ({"qrels": HEADER + "q1\td1\t0.5\n"}, "line 2, must be query-id, corpus-id and an integer"),
        (
            {"qrels": HEADER + f"q1\td1\t{10**30}\n"},
            "line 2, must have a grade from -1000000 to 1000000",
        ),
        ({"qrels": HEADER + f"q1\td1\t-{'9' * 5000}\n"}, "line 2, must have a grade from"),
        ({"qrels": HEADER + "q3\td1\t1\n"}, "line 2, names an unknown query: 'q3'"),
        ({"qrels": HEADER + "q1\td3\t1\n"}, "line 2, names an unknown document: 'd3'"),
        (
            {"qrels": HEADER + "q1\td1\t1\nq1\td1\t2\n"},
            "line 3, grades 'q1', 'd1' again",
        ),
        ({"qrels": HEADER + "q1\td1\t0\n"}, "has no relevant document for any query"),
    ],
)
def test_a_dataset_error_names_the_file_and_line(
    changed: dict[str, str | None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_beir(write_beir(tmp_path, **changed))
    assert message in str(caught.value)
