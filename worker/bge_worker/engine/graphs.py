"""CUDA graphs of small micro-batches.

A forward of few tokens waits for the host, which issues 200 kernels one by one: a query of 12
tokens takes an H100 1 ms and the host 4. A graph issues them all at once. Its shapes are fixed, so
dummy texts fill a micro-batch up to `SLOTS` texts and one of `BUCKETS` tokens; nobody reads their
rows. Only outputs of first tokens have graphs: a query's vector, and the scores of pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from .attention import Attention
from .checkpoint import Network
from .config import Config, Role
from .outputs import Outputs
from .packing import Batch, pack_on_host

log = logging.getLogger(__name__)

SLOTS = 32  # texts of a graph; the last one is always a dummy
BUCKETS = (64, 128, 256, 512, 1024)  # tokens of a graph
GRAPH_OUTPUTS: dict[Role, Outputs] = {"embed": Outputs.DENSE, "rerank": Outputs.RELEVANCE}


@dataclass(frozen=True)
class Graph:
    """A captured forward of `SLOTS` texts."""

    graph: torch.cuda.CUDAGraph
    buffer: Tensor  # [2T + SLOTS + 1] int32: the batch that it reads
    outputs: dict[str, Tensor]  # [SLOTS, …] each, overwritten by the next replay

    def replay(self, buffer: Tensor, num_texts: int) -> dict[str, Tensor]:
        """Compute a padded batch of the host. Returns the rows of its first `num_texts` texts."""
        self.buffer.copy_(buffer.pin_memory(), non_blocking=True)
        self.graph.replay()
        return {name: rows[:num_texts] for name, rows in self.outputs.items()}


class Graphs:
    """The graphs of one model, by tokens."""

    def __init__(self, outputs: Outputs, config: Config, graphs: dict[int, Graph]) -> None:
        self._outputs = outputs
        self._config = config
        self._graphs = graphs

    def __bool__(self) -> bool:
        return bool(self._graphs)

    def compute(
        self, outputs: Outputs, sequences: Sequence[Sequence[int]]
    ) -> dict[str, Tensor] | None:
        """Return the outputs of a micro-batch, None if no graph fits it."""
        if outputs != self._outputs:
            return None
        bucket = bucket_of(len(sequences), sum(map(len, sequences)))
        if bucket not in self._graphs:
            return None
        padded = pad_to_bucket(sequences, bucket, self._config.unk_token_id)
        buffer = pack_on_host(padded, self._config.pad_token_id)
        return self._graphs[bucket].replay(buffer, len(sequences))


def capture_graphs(
    network: Network, outputs: Outputs, config: Config, attention: Attention, dtype: torch.dtype
) -> Graphs:
    """Capture the graphs of a model. Without them, if one fails or computes something else."""
    captured: dict[int, Graph] = {}
    previous: Graph | None = None
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.inference_mode():
        for bucket in BUCKETS:
            try:
                graph = capture(network, outputs, config, attention, dtype, bucket, previous)
            except RuntimeError as error:
                log.warning("small micro-batches run without CUDA graphs: %s", error)
                captured.clear()
                break
            if graph is not None:
                captured[bucket] = previous = graph
    torch.cuda.current_stream().wait_stream(stream)
    return Graphs(outputs, config, captured)


def capture(
    network: Network,
    outputs: Outputs,
    config: Config,
    attention: Attention,
    dtype: torch.dtype,
    bucket: int,
    previous: Graph | None,
) -> Graph | None:
    """Capture the forward of a full bucket; None if the model takes no text of that length.

    It shares the memory of the previous graph: one runs at a time.

    Raises RuntimeError: it cannot be captured, or the replay differs from the forward itself.
    """
    if bucket > config.max_length:
        return None
    texts = (bucket // 2, 2)  # tokens of the first text: of a check, and of the capture
    device = network.encoder.word.device
    check, buffer = (dummy_buffer(length, bucket, config).to(device) for length in texts)
    batch = as_batch(buffer, texts[1], bucket)
    network.compute(batch, outputs, attention, dtype)  # allocates the libraries' workspaces
    graph = torch.cuda.CUDAGraph()
    # Not `torch.cuda.graph`, which collects garbage at each capture: 0.2 s.
    pool = None if previous is None else previous.graph.pool()
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        results = network.compute(batch, outputs, attention, dtype)
    finally:
        graph.capture_end()
    # Texts of other lengths than those captured.
    expected = network.compute(as_batch(check, texts[0], bucket), outputs, attention, dtype)
    buffer.copy_(check)
    graph.replay()
    for name, tensor in results.items():
        if not torch.allclose(tensor, expected[name], rtol=1e-2, atol=1e-3):
            raise RuntimeError(f"the graph of {bucket} tokens computes other values")
    return Graph(graph, buffer, results)


def dummy_lengths(length: int, bucket: int) -> list[int]:
    """Return the tokens of each text of a full bucket whose first has `length`."""
    return [len(ids) for ids in pad_to_bucket([[0] * length], bucket, 0)]


def dummy_buffer(length: int, bucket: int, config: Config) -> Tensor:
    """Return such a bucket on the host. Its tokens differ, so that a text's length matters."""
    tokens = iter([7 * i % config.vocab_size for i in range(bucket)])
    sequences = [[*islice(tokens, n)] for n in dummy_lengths(length, bucket)]
    return pack_on_host(sequences, config.pad_token_id)


def as_batch(buffer: Tensor, length: int, bucket: int) -> Batch:
    """View the buffer of `dummy_buffer`. Any text of a graph may be as long as the bucket."""
    return Batch.of(buffer, dummy_lengths(length, bucket), max_seqlen=bucket)


def bucket_of(num_texts: int, num_tokens: int) -> int | None:
    """Return the tokens of the smallest graph that a micro-batch fits, None if there is none.

    Every dummy text has at least one token.
    """
    dummies = SLOTS - num_texts
    if dummies < 1:
        return None
    return next((bucket for bucket in BUCKETS if num_tokens + dummies <= bucket), None)


def pad_to_bucket(
    sequences: Sequence[Sequence[int]], bucket: int, token_id: int
) -> list[Sequence[int]]:
    """Append dummy texts, so that there are `SLOTS` texts of `bucket` tokens together."""
    dummies = SLOTS - len(sequences)
    rest = bucket - sum(map(len, sequences)) - dummies + 1
    return [*sequences, *[[token_id]] * (dummies - 1), [token_id] * rest]
