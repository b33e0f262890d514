"""Load a tokenizer.json and encode texts on which its regular expressions may backtrack.

    python probe.py TOKENIZER.JSON

Prints the size of the vocabulary, or the reason for a failure with exit code 1. `convert.py` runs
this in a process of its own: an endless search can only be killed, and the library may crash. It
imports nothing from this project.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

REPEATS = 200  # of one character; exponential backtracking needs far fewer
MAX_CHARACTERS = 64


def main(path: str) -> int:
    try:
        tokenizer = Tokenizer.from_file(path)
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        for character in characters([content.get("normalizer"), content.get("pre_tokenizer")]):
            tokenizer.encode(character * REPEATS + "\0")
        print(tokenizer.get_vocab_size())
    except BaseException as error:  # a Rust panic is no Exception
        print(next(iter(str(error).splitlines()), type(error).__name__)[:200])
        return 1
    return 0


def characters(content: Any) -> list[str]:
    """Return a few usual ones, and those in the tokenizer's regular expressions."""
    used = {character for expression in expressions(content) for character in expression}
    return [*"a0 .я\n", *sorted(used)[:MAX_CHARACTERS]]


def expressions(content: Any) -> Iterator[str]:
    children = content.values() if isinstance(content, dict) else content
    for child in children if isinstance(content, dict | list) else ():
        yield from expressions(child)
    if isinstance(content, dict) and isinstance(content.get("Regex"), str):
        yield content["Regex"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
