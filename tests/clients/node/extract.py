"""Write the TypeScript of a plan into `plan/`, a file for each task.

python extract.py PLAN
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

TASKS = ("1.1", "1.2", "1.3", "2.1", "2.2", "3.3", "4.1")
HEADING = re.compile(r"^### Task (\d\.\d): ", re.MULTILINE)
BLOCK = re.compile(r"^```typescript\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main(plan: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    _, *parts = HEADING.split(plan.read_text("utf-8"))
    for task, text in zip(parts[::2], parts[1::2], strict=True):
        if task in TASKS:
            (code,) = BLOCK.findall(text)
            comment = f"// The user's own code: task {task} of the migration plan, unchanged.\n"
            (folder / f"task-{task}.ts").write_text(comment + code, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).with_name("plan"))
