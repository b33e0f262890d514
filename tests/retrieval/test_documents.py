"""Point ids and texts of documents."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_retrieval import Hit
from bge_retrieval.documents import NAMESPACE, parse_document, point_id, text_at


def test_text_at_follows_paths_through_the_payload() -> None:
    payload = {"page": {"content": ["первый", {"body": "второй"}]}, "a.b": "третий", "n": 1}
    assert text_at(payload, ["page.content.0"]) == "первый"
    assert text_at(payload, ["page.content.1.body", "a.b"]) == "второй\nтретий"
    assert text_at(payload, ["page.content." + "9" * 5000]) is None
    for path in ("page", "page.content.2", "page.content.x", "n", "a.c", ""):
        assert text_at(payload, [path]) is None


def test_a_null_id_is_no_id() -> None:
    payload = {"_id": None, "id": 5, "text": "т"}
    assert parse_document(payload, ["text"], "line 1").id == 5
    assert Hit(5, 1.0, "т", payload).document_id == "5"
    assert Hit("p", 1.0, "т", {"_id": None}).document_id == "p"


@pytest.mark.parametrize("text", ["0_1" + "2" * 29, " " + "1" * 31, "+" + "1" * 31, "١" * 32])
def test_only_hexadecimal_digits_are_a_uuid(text: str) -> None:
    assert point_id(text) == str(uuid.uuid5(NAMESPACE, text))


def test_each_notation_of_a_uuid_is_one_point() -> None:
    id = "5c56c793-69f3-4fbf-87e6-c4bf54c28c26"
    notations = (id, id.upper(), id.replace("-", ""), f"{{{id}}}", f"urn:uuid:{id}")
    assert {point_id(notation) for notation in notations} == {id}


@given(st.one_of(st.integers(0, 2**64 - 1), st.text(), st.dictionaries(st.text(), st.integers())))
def test_point_ids_are_stable_and_valid_in_qdrant(document_id: Any) -> None:
    id = point_id(document_id)
    assert id == point_id(document_id)
    assert id == document_id if isinstance(document_id, int) else uuid.UUID(str(id))
