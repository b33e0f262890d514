"""`make bench-plots`: plot `benchmarks/results/` as SVG files in `docs/images/`.

    engine.svg    each peer's time divided by ours, for each workload
    load.svg      queries answered per second, and p99, against queries offered per second

Runs in a virtual environment of its own, which has matplotlib and no package of this project.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).resolve().parent / "results"
OURS = "bge-serverless"
COLOURS = {
    OURS: "#1f6feb",
    "ONNX Runtime": "#d1742c",
    "OpenVINO": "#0f7c8a",
    "sentence-transformers": "#4d8f5b",
    "Infinity": "#8250df",
    "FlagEmbedding": "#7d8590",
}
STYLE = {
    "svg.hashsalt": "bge-serverless",  # equal results give equal files
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def engine(results: dict[str, Any]) -> plt.Figure:
    shapes = results["engine"]
    figure, axes = plt.subplots(len(shapes), 1, figsize=(9, 3.4 * len(shapes)), squeeze=False)
    for (shape, measured), (axis,) in zip(shapes.items(), axes, strict=True):
        bars(axis, measured)
        axis.set_title(f"{shape} shape", loc="left")
        axis.set_ylabel("times as long as ours")
    axes[0][0].legend(frameon=False, ncols=3, fontsize=8)
    return figure


def bars(axis: Any, measured: dict[str, Any]) -> None:
    """Draw a group per workload and a bar per peer, from the line at 1: as fast as ours."""
    peers = [name for name in COLOURS if name != OURS]
    width = 0.8 / len(peers)
    for index, peer in enumerate(peers):
        rows = {n: entry["rows"].get(peer) for n, entry in enumerate(measured.values())}
        ratios = {n: row["ours_is_faster_by"] for n, row in rows.items() if row}
        positions = [n + (index - len(peers) / 2 + 0.5) * width for n in ratios]
        heights = [ratio - 1 for ratio in ratios.values()]
        drawn_bars = axis.bar(positions, heights, width, bottom=1, color=COLOURS[peer], label=peer)
        axis.bar_label(drawn_bars, [f"{ratio:.2g}" for ratio in ratios.values()], fontsize=6)
    axis.axhline(1, color=COLOURS[OURS], linewidth=1)
    axis.set_yscale("log")
    axis.set_yticks([0.2, 0.5, 1, 2, 5, 10, 20], ["0.2", "0.5", "1", "2", "5", "10", "20"])
    axis.minorticks_off()
    axis.set_xticks(range(len(measured)), [*measured])


def load(results: dict[str, Any]) -> plt.Figure:
    figure, (throughput, latency) = plt.subplots(1, 2, figsize=(9, 3.4))
    for name, measured in results["serving"]["small"].items():
        entries = measured["offered"]
        offered = [entry["offered"] for entry in entries]
        style = {"color": COLOURS[name], "marker": "o", "markersize": 3, "label": name}
        throughput.plot(offered, [entry["per_second"] for entry in entries], **style)
        latency.plot(offered, [entry["p99_ms"] for entry in entries], **style)
    maximum = max(offered)
    throughput.plot([0, maximum], [0, maximum], color="#d0d7de", linewidth=1, zorder=0)
    throughput.set_ylabel("queries answered a second")
    latency.set_yscale("log")
    latency.set_ylabel("p99, ms, of those answered")
    for axis in (throughput, latency):
        axis.set_xlabel("queries offered a second")
    throughput.legend(frameon=False)
    return figure


def cpu_results() -> dict[str, Any]:
    """Return each section of the first processor that has it, as `tables.py` does."""
    results: dict[str, Any] = {}
    for path in sorted(FOLDER.glob("*.json"), reverse=True):
        content = json.loads(path.read_text("utf-8"))
        if content["machine"]["gpu"] is None:
            results |= content
    return results


def main() -> None:
    results = cpu_results()
    with plt.rc_context(STYLE):
        for plot in (engine, load):
            figure = plot(results)
            figure.tight_layout()
            path = FOLDER.parents[1] / "docs" / "images" / f"{plot.__name__}.svg"
            figure.savefig(path, metadata={"Date": None})
            print(path)


if __name__ == "__main__":
    main()
