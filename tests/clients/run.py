"""Call one client's script: lists of arguments as JSON on stdin, results on stdout's last line.

The script's interpreter has the client's packages and none of this project's.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from typing import Any


def call(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"value": function(**arguments)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    script, task = sys.argv[1:]
    function = runpy.run_path(script)[task]
    results = [call(function, arguments) for arguments in json.load(sys.stdin)]
    print(json.dumps(results, default=lambda array: array.tolist()), flush=True)


if __name__ == "__main__":
    main()
