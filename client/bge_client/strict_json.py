"""Parse untrusted JSON: no NaN, no huge integers, no deep nesting."""

from __future__ import annotations

import json
from typing import Any, NoReturn

MAX_DEPTH = 100  # a Qdrant server allows 128, recursive Python code some hundreds
TOO_DEEP = f"nested deeper than {MAX_DEPTH}"


def loads(text: str | bytes) -> Any:
    """Parse a JSON document.

    Raises:
        ValueError: it is not JSON, or nested too deeply. The message does not quote it.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(error.msg) from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    data = text.encode(errors="replace") if isinstance(text, str) else text
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _is_deep(value):  # counting is fast
        raise ValueError(TOO_DEEP)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        children = [node.values() if isinstance(node, dict) else node for node in level]
        level = [child for nodes in children for child in nodes if isinstance(child, (dict, list))]
        if not level:
            return False
    return True
