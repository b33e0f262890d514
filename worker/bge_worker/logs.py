"""Log lines that a person reads (`BGE_LOG_FORMAT=text`) or a machine (`json`)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime

from .settings import Settings, unknown_variables

FIELDS = "fields"  # of a record: data beside the message, for `extra=`


def configure_logging(settings: Settings, env: Mapping[str, str]) -> None:
    """Send the log lines of all packages to stderr. Warn of unknown `BGE_…` variables in `env`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    for sentence in unknown_variables(env):
        logging.getLogger(__name__).warning(sentence)


def fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    fields: Mapping[str, object] = getattr(record, FIELDS, {})
    return fields


def timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class TextFormatter(logging.Formatter):
    """`2026-11-26T08:40:05.123+00:00 INFO    request method=POST route=/embed status=200 …`"""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in fields_of(record).items())
        line = f"{timestamp(record)} {record.levelname:7} {record.getMessage()}{fields}"
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return line + trace


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": timestamp(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
