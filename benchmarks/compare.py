"""Texts per second of the packed engine beside its peers: `make bench`.

Each contestant lives in a process of its own, with its own memory and its own settings, and they
take turns: one round each, again and again, in one run on the same random weights and texts. What
varies with the machine's mood varies for all. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from workload import SHAPES, mixed_texts, prepare

Encode = Callable[[list[str]], np.ndarray]


def packed(folder: Path) -> Encode:
    from bge_worker.process import prepare_process

    prepare_process()  # as the worker does, before it imports torch
    from bge_worker.engine import PackedEngine
    from bge_worker.packing import round_robin
    from bge_worker.schema import EmbedRequest
    from bge_worker.settings import Settings

    model = folder / "float32" / "bge-m3"
    engine = PackedEngine(Settings(embed_model=model, rerank_model=None))

    def encode(texts: list[str]) -> np.ndarray:
        request = EmbedRequest(texts)
        waiting = engine.encode(request, 0, len(texts))
        vectors: list[np.ndarray] = []
        while waiting:
            lengths = [len(text.ids) for text in waiting]
            (count,) = round_robin([lengths], engine.runtime.max_batch_tokens)
            vectors += [one.dense for one in engine.run(request.outputs, waiting[:count])]
            waiting = waiting[count:]
        return np.stack(vectors)

    return encode


def sentence_transformers(folder: Path) -> Encode:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder / "hub" / "bge-m3"), device="cpu")
    return lambda texts: model.encode(texts, show_progress_bar=False)


def flagembedding(folder: Path) -> Encode:
    from FlagEmbedding import BGEM3FlagModel

    model = BGEM3FlagModel(str(folder / "hub" / "bge-m3"), use_fp16=False, devices="cpu")
    return lambda texts: model.encode(texts, max_length=8192)["dense_vecs"]


CONTESTANTS: dict[str, Callable[[Path], Encode]] = {
    "packed": packed,
    "sentence-transformers": sentence_transformers,
    "FlagEmbedding": flagembedding,
}


def contest(name: str, folder: Path) -> None:
    """A contestant's process: answer each line of stdin with one line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print must not mix in
        encode = CONTESTANTS[name](folder)
        texts = mixed_texts()
        encode(texts[:2])
        for command in sys.stdin:
            began = perf_counter()
            vectors = encode(texts) if command.strip() == "run" else encode(texts[:4])
            answer = {
                "seconds": perf_counter() - began,
                "vectors": vectors[:4].tolist(),
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "peak_gflops": matrix_peak() if name == "packed" else None,
            }
            print(json.dumps(answer), file=answers, flush=True)


def matrix_peak() -> float:
    """GFLOP/s of the best of a few large matrix products: the machine's own ceiling, now."""
    import torch

    rows, inner, columns = 2048, 1024, 4096
    a, b = torch.randn(rows, inner), torch.randn(inner, columns)
    out = torch.empty(rows, columns)
    times = []
    for _ in range(8):
        began = perf_counter()
        torch.mm(a, b, out=out)
        times.append(perf_counter() - began)
    return 2 * rows * inner * columns / min(times) / 1e9


def forward_flops(shape: str, lengths: list[int]) -> float:
    """Multiply-adds times two of the packed forward: the last layer for first tokens alone."""
    s = SHAPES[shape]
    tokens, squares = sum(lengths), sum(n * n for n in lengths)
    full = 2 * tokens * (4 * s.width**2 + 2 * s.width * s.feed_forward) + 4 * squares * s.width
    per_text = 2 * len(lengths) * (2 * s.width**2 + 2 * s.width * s.feed_forward)
    last = 2 * tokens * 2 * s.width**2 + per_text + 4 * tokens * s.width
    return float((s.layers - 1) * full + last)


class Contestant:
    """The runner's end of a contestant's process."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--contestant", name, "--folder", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.questions, self.answers = self.process.stdin, self.process.stdout
        self.seconds: list[float] = []
        self.last: dict[str, Any] = {}

    def ask(self, command: str) -> dict[str, Any]:
        self.questions.write(command + "\n")
        self.questions.flush()
        line = self.answers.readline()
        if not line:
            sys.exit(f"{self.name} died; run its process by hand to see why")
        self.last = json.loads(line)
        return self.last

    def run(self) -> None:
        self.seconds.append(self.ask("run")["seconds"])


def token_lengths(folder: Path) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "float32" / "bge-m3" / "tokenizer.json"))
    return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(mixed_texts())]


def compare(shape: str, folder: Path, rounds: int) -> dict[str, Any]:
    prepare(shape, folder)
    contestants = [Contestant(name, folder) for name in CONTESTANTS]
    vectors = [np.array(contestant.ask("check")["vectors"]) for contestant in contestants]
    difference = max(float(np.abs(vectors[0] - other).max()) for other in vectors[1:])
    if difference > 1e-4:
        sys.exit(f"the contestants disagree by {difference}: nothing to time")
    peaks = []
    for number in range(rounds):
        for contestant in contestants:
            contestant.run()
        peaks.append(contestants[0].last["peak_gflops"])
        print(f"{shape}: round {number + 1} of {rounds} done", file=sys.stderr)
    for contestant in contestants:
        contestant.questions.close()
        contestant.process.wait()
    return report(shape, folder, contestants, peaks, difference)


def report(
    shape: str, folder: Path, contestants: list[Contestant], peaks: list[float], difference: float
) -> dict[str, Any]:
    ours = contestants[0]
    lengths = token_lengths(folder)
    flops = forward_flops(shape, lengths) / 1e9
    shares = [flops / s / peak for s, peak in zip(ours.seconds, peaks, strict=True)]
    print(f"\n{shape} shape, {len(lengths)} texts, {sum(lengths)} tokens, fp32 on this CPU")
    print(f"{'':24}{'texts/s':>9}{'median s':>10}{'min–max s':>16}{'packed ×':>10}{'MB':>7}")
    rows = {}
    for one in contestants:
        median = statistics.median(one.seconds)
        # Round by round: a slow minute slows both sides of a ratio.
        ratio = statistics.median(
            theirs / mine for theirs, mine in zip(one.seconds, ours.seconds, strict=True)
        )
        spread = f"{min(one.seconds):.2f}–{max(one.seconds):.2f}"
        memory = one.last["peak_rss_mb"]
        print(
            f"{one.name:24}{len(lengths) / median:9.2f}{median:10.2f}{spread:>16}"
            f"{ratio:10.2f}{memory:7}"
        )
        rows[one.name] = {
            "texts_per_second": round(len(lengths) / median, 3),
            "seconds": [round(s, 3) for s in one.seconds],
            "packed_is_faster_by": round(ratio, 2),
            "peak_rss_mb": memory,
        }
    share = statistics.median(shares)
    print(
        f"packed: {flops / statistics.median(ours.seconds):.0f} GFLOP/s, {share:.0%} of this "
        f"machine's matrix product ({statistics.median(peaks):.0f}); "
        f"largest difference of a vector {difference:.1e}"
    )
    return {"contestants": rows, "share_of_peak": round(share, 3), "difference": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=[*SHAPES], default=[*SHAPES])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/bench"))
    parser.add_argument("--contestant", choices=[*CONTESTANTS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        contest(arguments.contestant, arguments.folder)
        return
    results = {
        shape: compare(shape, arguments.folder / shape, arguments.rounds)
        for shape in arguments.shape
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
