from __future__ import annotations

import logging

import pytest

from bge_client import ConfigurationError
from bge_client.redaction import RedactingFilter, read_secret, redact


def test_secret_is_stripped() -> None:
    assert read_secret("rpa_edge\r\n", "RUNPOD_API_KEY") == "rpa_edge"
    assert read_secret(" \n", "RUNPOD_API_KEY") is None
    assert read_secret(None, "RUNPOD_API_KEY") is None


@pytest.mark.parametrize("value", ["two words", "line\nbreak", "ключ", "bell\x07"])
def test_secret_that_no_header_can_carry_is_refused_and_not_quoted(value: str) -> None:
    with pytest.raises(ConfigurationError, match="`JINA_API_KEY`") as refused:
        read_secret(value, "JINA_API_KEY")
    assert value not in str(refused.value)


def test_secret_is_masked_plain_and_percent_encoded() -> None:
    read_secret("jina/1+2=3", "JINA_API_KEY")
    text = "header 'Bearer jina/1+2=3' of https://host/?key=jina%2F1%2B2%3D3"
    assert redact(text) == "header 'Bearer ***' of https://host/?key=***"


def test_user_and_password_of_a_url_are_masked() -> None:
    assert redact("no answer from http://me:p@ss@mirror:80/x") == (
        "no answer from http://***@mirror:80/x"
    )


def test_malformed_log_call_is_left_to_its_handler() -> None:
    record = logging.LogRecord("other", 20, "", 0, "%s %s", (1,), None)
    assert RedactingFilter().filter(record)
    assert record.args == (1,)


def test_log_lines_of_other_packages_are_redacted() -> None:
    read_secret("qdrant-key-1", "QDRANT_API_KEY")
    record = logging.LogRecord("httpx", 20, "", 0, "api-key: %s", ("qdrant-key-1",), None)
    assert RedactingFilter().filter(record)
    assert record.getMessage() == "api-key: ***"
