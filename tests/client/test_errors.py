"""Errors: their data, their tree, and that they survive a process pool."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from bge_client import errors
from bge_client.errors import worker_error


def test_errors_have_builtin_bases() -> None:
    assert issubclass(errors.DeadlineError, TimeoutError)
    assert issubclass(errors.ConfigurationError, ValueError)


def test_docstring_draws_the_tree_of_errors() -> None:
    drawn = errors.__doc__ or ""
    tree = [errors.BGEError]
    for kind in tree:
        assert kind.__name__ in drawn
        tree += [sub for sub in kind.__subclasses__() if sub.__module__ == errors.__name__]


@pytest.mark.parametrize(
    "error",
    [
        errors.RateLimitError("HTTP 429", 429),
        errors.DeadlineError("late"),
        errors.ConfigurationError("no endpoint"),
        errors.ValidationError("`texts[3]` is blank", field="texts", index=3, limit=8192),
    ],
)
def test_errors_keep_their_data_when_pickled(error: errors.BGEError) -> None:
    error.retry_after = 2.0
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize(
    ("message", "details", "data"),
    [
        ("`texts[3]` has 9 tokens", {}, ("texts", 3, None)),
        ("at most 3 of `max_texts`; `documents[12]` is over", {}, ("documents", 12, None)),
        ("`max_length` must be at least 3", {}, ("max_length", None, None)),
        ("something else", {}, (None, None, None)),
        ("a text", {"field": "texts", "index": 3, "limit": 8192}, ("texts", 3, 8192)),
        ("`texts[3]`", {"field": "documents", "index": 0}, ("documents", 0, None)),
        ("a text", {"field": 5, "index": "3", "limit": [1]}, (None, None, None)),
        ("a text", {"field": None, "index": True, "limit": False}, (None, None, None)),
        (f"`texts[{'9' * 5000}]`", {}, (None, None, None)),
    ],
)
def test_data_of_a_worker_s_error(message: str, details: Any, data: Any) -> None:
    error = worker_error(f"ValidationError: {message}", details)
    assert error is not None
    assert (error.field, error.index, error.limit) == data
    assert str(error) == message


def test_offset_moves_the_index_and_the_message() -> None:
    error = errors.ValidationError("`texts[3]` is like `texts[1]`", field="texts", index=3)
    error.add_offset(100)
    assert (str(error), error.index) == ("`texts[103]` is like `texts[101]`", 103)
