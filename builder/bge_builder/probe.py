"""Load a tokenizer.json and have it encode texts on which a regular expression may backtrack.

    python builder/probe.py TOKENIZER.JSON

Prints the number of its tokens; or ends with exit code 1 and the reason. It is a process of its own
(`convert.py` starts it), since nothing else ends a search that does not come back or survives a
crash of the library. It imports nothing of this project.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

RUN = 200  # of one character; what backtracks exponentially is lost long before
MAX_CHARACTERS = 64


def main(path: str) -> int:
    try:
        tokenizer = Tokenizer.from_file(path)
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        for character in characters([content.get("normalizer"), content.get("pre_tokenizer")]):
            tokenizer.encode(character * RUN + "\0")
        print(tokenizer.get_vocab_size())
    except BaseException as error:  # the library panics: no Exception
        print(next(iter(str(error).splitlines()), type(error).__name__)[:200])
        return 1
    return 0


def characters(content: Any) -> list[str]:
    """Usual ones, and those that the tokenizer's expressions are made of."""
    spelled = {character for expression in expressions(content) for character in expression}
    return [*"a0 .я\n", *sorted(spelled)[:MAX_CHARACTERS]]


def expressions(part: Any) -> Iterator[str]:
    values = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    for value in values:
        yield from expressions(value)
    if isinstance(part, dict) and isinstance(part.get("Regex"), str):
        yield part["Regex"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
