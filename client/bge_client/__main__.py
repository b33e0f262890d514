"""Run `bge`, or name the extra to install for it."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from .cli import bge
    except ImportError as error:
        sys.exit(f"bge needs {error.name}: pip install 'bge-client[cli]'")
    bge()


if __name__ == "__main__":
    main()
