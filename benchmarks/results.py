"""`benchmarks/results/`: one file per device with measurements, their dates, and package versions.

A file has a section for each benchmark. A run replaces its own entries and keeps the others. A file
belongs to one machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Iterable
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from contestants import CONTESTANTS
from workload import NAMES, ROOT

FOLDER = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "tokenizers")


def options(description: str) -> argparse.ArgumentParser:
    """Return the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="save to benchmarks/results/")
    return parser


def report(measurements: Iterable[tuple[str, dict[str, Any]]], *, save: bool) -> dict[str, Any]:
    """Print each section as soon as it is measured, then all as one line of JSON.

    Saves at once, so that an interrupted run keeps its results. Exits before the first measurement
    if the file belongs to another machine.
    """
    if save:
        read_results()
    results: dict[str, Any] = {}
    for section, entries in measurements:
        show(section, entries)
        results[section] = merge(results.get(section, {}), entries)
        if save:
            save_results(section, entries)
    print(json.dumps(results))
    return results


def show(title: str, entries: dict[str, Any]) -> None:
    for name, entry in entries.items():
        if "date" not in entry:
            show(f"{title}: {name}", entry)
            continue
        print(f"\n{title}: {name}")
        for field, value in entry.items():
            print(f"  {field:46}{value}", flush=True)


def read_results() -> tuple[Path, dict[str, Any]]:
    """Return the path and the content of this device's file.

    Exits if the file belongs to another machine; call it before a long measurement.
    """
    import torch

    current = machine(torch.cuda.get_device_name() if torch.cuda.is_available() else None)
    name = str(current["gpu"] or current["cpu"]).lower()
    path = FOLDER / f"{re.sub(r'[^a-z0-9]+', '-', name)}.json"
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

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    return {"gpu": gpu, "cpu": cpu, "threads": torch.get_num_threads()}


def versions() -> dict[str, str]:
    installed = {name: version(name) for name in PACKAGES}
    for peer in CONTESTANTS.values():
        name, libraries = peer.package, peer.venv / "lib"
        path = [str(folder) for folder in libraries.glob("python*/site-packages") if name]
        installed.update((name, package.version) for package in distributions(name=name, path=path))
    return installed
