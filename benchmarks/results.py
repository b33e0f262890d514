"""`benchmarks/results/`: one file per device with measurements, their dates, and package versions.

Sections: `engine` by shape and workload (`compare.py`), `serving` by server (`saturation.py`),
`queue` by form of reply (`queue_worker.py`), `cold` (`cold_start.py`), `beside a bulk` (`serve.py`)
and `gpu`. A run replaces its own entries and keeps the others. A file belongs to one machine.
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
PEER_VENVS = {
    "FlagEmbedding": ROOT / ".venv-flagembedding",
    "infinity-emb": ROOT / ".venv-infinity",
    "onnxruntime": ROOT / ".venv-onnxruntime",
    "sentence-transformers": ROOT / ".venv-sentence-transformers",
}


def read_results() -> tuple[Path, dict[str, Any]]:
    """Return the path and the content of this device's file.

    Exits if the file belongs to another machine; call it before a long measurement.
    """
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    path = FOLDER / f"{(gpu or 'cpu').replace(' ', '-').lower()}.json"
    current = machine(gpu)
    before = json.loads(path.read_text("utf-8")) if path.exists() else {"machine": current}
    if before["machine"] != current:
        sys.exit(f"{path} belongs to {before['machine']}, not to {current}: move it away first")
    return path, before


def save_results(section: str, entries: dict[str, Any]) -> Path:
    """Merge a tree of names, with entries as its leaves, into this device's file."""
    path, before = read_results()
    known = before.get("versions", {}) | versions()
    after = before | {"versions": known, section: merge(before.get(section, {}), entries)}
    FOLDER.mkdir(exist_ok=True)
    path.write_text(json.dumps(after, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return path


def with_date(entry: dict[str, Any]) -> dict[str, Any]:
    return {"date": time.strftime("%Y-%m-%d"), **entry}


def merge(before: dict[str, Any], entries: dict[str, Any]) -> dict[str, Any]:
    """Replace entries, which have a date; merge the levels above them."""
    after = dict(before)
    for name, value in entries.items():
        after[name] = value if "date" in value else merge(before.get(name, {}), value)
    if after.keys() <= set(NAMES):  # workloads stay in the order of `NAMES`
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
    installed = {name: version(name) for name in PACKAGES}
    for package, folder in PEER_VENVS.items():
        python = folder / "bin" / "python"
        if python.exists():
            code = f"from importlib.metadata import version; print(version('{package}'))"
            ran = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
            installed[package] = ran.stdout.strip()
    return installed
