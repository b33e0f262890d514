"""`make bench-plots`: draws what stands in `benchmarks/results/`, as SVG beside it.

    engine.svg    how many times as long each peer takes, workload by workload
    load.svg      queries answered a second, and p99, against queries offered a second

Runs in a virtual environment of its own, which holds matplotlib and nothing of ours.
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
    "ONNX Runtime int8": "#e6b98f",
    "sentence-transformers": "#4d8f5b",
    "Infinity": "#8250df",
    "FlagEmbedding": "#7d8590",
}
STYLE = {
    "svg.hashsalt": "bge-serverless",  # the same file from the same numbers
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
    """A group for each workload, a bar for each peer; on the line of 1 a peer is as fast."""
    peers = [name for name in COLOURS if name != OURS]
    width = 0.8 / len(peers)
    for place, peer in enumerate(peers):
        rows = {n: one["rows"].get(peer) for n, one in enumerate(measured.values())}
        found = {n: row["ours_is_faster_by"] for n, row in rows.items() if row}
        left = [n + (place - len(peers) / 2 + 0.5) * width for n in found]
        heights = [ratio - 1 for ratio in found.values()]  # from the line of 1, up or down
        drawn = axis.bar(left, heights, width, bottom=1, color=COLOURS[peer], label=peer)
        axis.bar_label(drawn, [f"{ratio:.2g}" for ratio in found.values()], fontsize=6)
    axis.axhline(1, color=COLOURS[OURS], linewidth=1)
    axis.set_yscale("log")
    axis.set_yticks([0.2, 0.5, 1, 2, 5, 10, 20], ["0.2", "0.5", "1", "2", "5", "10", "20"])
    axis.minorticks_off()
    axis.set_xticks(range(len(measured)), [*measured])


def load(results: dict[str, Any]) -> plt.Figure:
    figure, (answered, late) = plt.subplots(1, 2, figsize=(9, 3.4))
    for name, found in results["serving"]["small"].items():
        offered = [one["offered"] for one in found["offered"]]
        style = {"color": COLOURS[name], "marker": "o", "markersize": 3, "label": name}
        answered.plot(offered, [one["per_second"] for one in found["offered"]], **style)
        late.plot(offered, [one["p99_ms"] for one in found["offered"]], **style)
    most = max(offered)
    answered.plot([0, most], [0, most], color="#d0d7de", linewidth=1, zorder=0)
    answered.set_ylabel("queries answered a second")
    late.set_yscale("log")
    late.set_ylabel("p99, ms, of those answered")
    for axis in (answered, late):
        axis.set_xlabel("queries offered a second")
    answered.legend(frameon=False)
    return figure


def main() -> None:
    results = json.loads((FOLDER / "cpu.json").read_text("utf-8"))
    with plt.rc_context(STYLE):
        for draw in (engine, load):
            figure = draw(results)
            figure.tight_layout()
            path = FOLDER / f"{draw.__name__}.svg"
            figure.savefig(path, metadata={"Date": None})
            print(path)


if __name__ == "__main__":
    main()
