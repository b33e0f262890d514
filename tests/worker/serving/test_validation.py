"""Bad input gets an error that names the field, the limit and what was given; never the text."""

from __future__ import annotations

from typing import Any

import pytest

from bge_worker.errors import ValidationError
from bge_worker.serving.payload import read_payload
from bge_worker.settings import Settings
from fakes.engine import MODEL

REFUSED: list[tuple[Any, str]] = [
    ({"texts": []}, "`texts` must be a list of length >= 1. Given: a list of 0"),
    ({"texts": ["a"] * 5}, "`texts` must hold 1 to 4 texts (`BGE_MAX_TEXTS`). Given: 5"),
    ({"texts": {"a": "b"}}, "`texts` must be a string or a list. Given: an object"),
    ({"texts": ["a", 7]}, "`texts[1]` must be a string. Given: 7"),
    ({"texts": ["a", "b" * 1_000_001]}, "`texts[1]` must be a string of length <= 1000000. Given"),
    ({"texts": ["a", " \n\u3000"]}, "`texts[1]` must not be empty or blank"),
    ({"texts": ""}, "`texts` must not be empty or blank. Given: an empty string"),
    ({"texts": ["ab\ud800"]}, "`texts[0]` must be valid Unicode. Given: a lone surrogate at"),
    ({"texts": "a", "colour": 1}, "unknown field `colour`. Known here: `texts`, `return_dense`"),
    ({"texts": "a", "return_dense": False}, "must be true. Given: all false"),
    ({"texts": "a", "return_dense": 1}, "`return_dense` must be true or false. Given: 1"),
    ({"texts": "a", "max_length": 2}, "`max_length` must be an integer >= 3. Given: 2"),
    ({"texts": "a", "max_length": 8193}, "`max_length` must be an integer <= 8192. Given: 8193"),
    ({"texts": "a", "max_length": True}, "`max_length` must be an integer. Given: a boolean"),
    ({"texts": "a", "max_length": 10**5000}, "an integer <= 8192. Given: an integer of more than"),
    ({"texts": "a", "truncate": "yes"}, "`truncate` must be true or false. Given: a string"),
    ({"texts": "a", "encoding_format": "hex"}, 'must be one of "float", "base64". Given: "hex"'),
    ({"texts": "a", "dtype": 1}, "`dtype` must be a string. Given: 1"),
    ({"texts": "a", "encoding_format": "\ud800"}, "`input` must be valid Unicode. Given: a lone"),
    ({"query": "q"}, "`documents` is required"),
    ({"query": "q", "documents": "d"}, "`documents` must be a list. Given: a string"),
    ({"query": "q", "documents": []}, "`documents` must be a list of length >= 1. Given: a list"),
    ({"query": "", "documents": ["d"]}, "`query` must not be empty or blank"),
    ({"query": ["q"], "documents": ["d"]}, "`query` must be a string. Given: a list"),
    ({"query": "q", "documents": ["a", True]}, "`documents[1]` must be a string or an object"),
    ({"query": "q", "documents": [{"txt": "d"}]}, "`documents[0]`: object contains unknown field"),
    ({"query": "q", "documents": [{}]}, "`documents[0]`: object missing required field `text`"),
    ({"query": "q", "documents": [{"text": 1}]}, "`documents[0].text` must be a string. Given: 1"),
    ({"query": "q", "documents": [{"text": " "}]}, "`documents[0].text` must not be empty or bla"),
    ({"query": "q", "documents": ["d"], "top_n": 0}, "`top_n` must be an integer >= 1. Given: 0"),
    ({"query": "q", "documents": ["d"], "max_length": 16}, "an integer >= 17. Given: 16"),
    ({"info": True, "x": 1}, "unknown field `x`. Known here: `info`"),
    ({"openai_route": 1}, "`openai_route` must be a string"),
]


@pytest.mark.parametrize(("payload", "message"), REFUSED)
def test_a_bad_field_is_named_with_its_limit(payload: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        read_payload(payload).to_request(MODEL, Settings(max_texts=4))
    assert message in str(caught.value)
    assert str(caught.value).startswith("ValidationError: ")
