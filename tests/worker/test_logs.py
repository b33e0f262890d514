"""Log lines for a person and for a machine."""

from __future__ import annotations

import json
import logging

from bge_worker.logs import FIELDS, JsonFormatter, TextFormatter


def record(**extra: object) -> logging.LogRecord:
    return logging.makeLogRecord(
        {
            "name": "bge_worker.access",
            "levelname": "INFO",
            "msg": "request",
            "created": 0.5,
            **extra,
        }
    )


def test_a_text_line_has_the_time_and_the_fields() -> None:
    line = TextFormatter().format(record(**{FIELDS: {"route": "/embed", "status": 200}}))
    assert line == "1970-01-01T00:00:00.500+00:00 INFO    request route=/embed status=200"


def test_a_json_line_is_one_object() -> None:
    line = json.loads(JsonFormatter().format(record(**{FIELDS: {"status": 200}})))
    assert line == {
        "time": "1970-01-01T00:00:00.500+00:00",
        "level": "INFO",
        "logger": "bge_worker.access",
        "message": "request",
        "status": 200,
    }
