"""Point ids and texts of documents."""

from __future__ import annotations

import uuid
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bge_retrieval import Hit
from bge_retrieval.documents import parse_document, point_id, text_at


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


@given(st.one_of(st.integers(0, 2**64 - 1), st.text(), st.dictionaries(st.text(), st.integers())))
def test_point_ids_are_stable_and_valid_in_qdrant(document_id: Any) -> None:
    id = point_id(document_id)
    assert id == point_id(document_id)
    assert id == document_id if isinstance(document_id, int) else uuid.UUID(str(id))
