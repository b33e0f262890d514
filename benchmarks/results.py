"""`benchmarks/results/`: one file a device, what was measured on it, when, and with which versions.

Sections: `engine` by shape and workload (`compare.py`), `serving` by server (`saturation.py`),
`queue` by form of reply (`queue_worker.py`), `cold` (`cold_start.py`), `beside a bulk` (`serve.py`)
and `gpu`. A run replaces what it has measured and leaves the rest. A file is of one machine, and
each entry has its date.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workload import NAMES, ROOT

FOLDER = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "tokenizers")
ELSEWHERE = {  # in virtual environments of their own
    "FlagEmbedding": ROOT / ".venv-flagembedding",
    "infinity-emb": ROOT / ".venv-infinity",
    "onnxruntime": ROOT / ".venv-onnxruntime",
    "sentence-transformers": ROOT / ".venv-sentence-transformers",
}


def kept() -> tuple[Path, dict[str, Any]]:
    """This device's file and what it holds. Ask before an hour's measuring: it ends a run that
    would write beside another machine's results."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    path = FOLDER / f"{(gpu or 'cpu').replace(' ', '-').lower()}.json"
    here = machine(gpu)
    before = json.loads(path.read_text("utf-8")) if path.exists() else {"machine": here}
    if before["machine"] != here:
        sys.exit(f"{path} is of {before['machine']}, not of {here}: move it away first")
    return path, before


def keep(section: str, found: dict[str, Any]) -> Path:
    """Write `found`, entries by name or by names below names, into this device's file."""
    path, before = kept()
    known = before.get("versions", {}) | versions()
    after = before | {"versions": known, section: merged(before.get(section, {}), found)}
    FOLDER.mkdir(exist_ok=True)
    path.write_text(json.dumps(after, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return path


def dated(entry: dict[str, Any]) -> dict[str, Any]:
    return {"date": time.strftime("%Y-%m-%d"), **entry}


def merged(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """An entry, known by its date, is replaced; names above entries are kept."""
    after = dict(before)
    for name, value in found.items():
        after[name] = value if "date" in value else merged(before.get(name, {}), value)
    if after.keys() <= set(NAMES):  # workloads in their own order, whatever was measured last
        return {name: after[name] for name in NAMES if name in after}
    return after


def machine(gpu: str | None) -> dict[str, Any]:
    import torch

    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {"gpu": gpu, "cpu": model, "threads": torch.get_num_threads()}


def versions() -> dict[str, str]:
    found = {name: version(name) for name in PACKAGES}
    for package, folder in ELSEWHERE.items():
        python = folder / "bin" / "python"
        if python.exists():
            code = f"from importlib.metadata import version; print(version('{package}'))"
            ran = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
            found[package] = ran.stdout.strip()
    return found
