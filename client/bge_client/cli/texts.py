"""`bge embed`, `rerank`, `bench`: commands that send texts to the endpoint."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import chain, count
from pathlib import Path
from typing import IO, Any

import click
import numpy as np

from ..bulk import run_each
from ..calls import EmbedCall, RerankCall, Task
from ..client import Client
from ..codec import EmbedOptions, RerankOptions
from ..errors import ConfigurationError, FingerprintError
from ..files import OutputOptions, ResumePoint, Text, encode, locked, read_texts, resume, write_npz
from ..protocol import Exchange
from ..results import Embedding
from .command import UTF8, connected, plain
from .progress import count_lines, progress_bar

jsonl_option = click.option(
    "--jsonl/--lines", default=None, help="Format of SOURCE.  [default: by its name]"
)
field_option = click.option(
    "--field", default="text", show_default=True, help="JSONL field with the text."
)


def _texts(source: IO[str], jsonl: bool | None, field: str) -> Iterator[Text]:
    is_jsonl = source.name.endswith((".jsonl", ".ndjson")) if jsonl is None else jsonl
    return read_texts(source, jsonl=is_jsonl, field=field)


# ---------------------------------------------------------------------------------- embed


@click.command()
@click.argument("source", type=UTF8, default="-")
@click.option(
    "-o",
    "--output",
    default="-",
    help="A .jsonl or .npz file, or - for stdout (the default). An interrupted run is resumed "
    "from its file.",
)
@jsonl_option
@field_option
@click.option("--dense/--no-dense", default=True, show_default=True)
@click.option("--sparse", is_flag=True)
@click.option("--colbert", is_flag=True)
@click.option("--max-length", type=int, help="Truncate texts to this many tokens.")
@click.option("--base64", "exact", is_flag=True, help="Exact vectors instead of rounded floats.")
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT instead of resuming.")
@connected("EMBEDDINGS")
def embed(
    client: Client,
    source: IO[str],
    output: str,
    jsonl: bool | None,
    field: str,
    dense: bool,
    sparse: bool,
    colbert: bool,
    max_length: int | None,
    exact: bool,
    overwrite: bool,
) -> None:
    """Embed each line of SOURCE, a file or - for stdin.

    \b
      bge embed texts.txt -o vectors.npz
      bge embed passages.jsonl --field body --sparse -o vectors.jsonl
      echo "море" | bge embed
    """
    requested = {"dense": dense, "sparse": sparse, "colbert": colbert}
    outputs = frozenset(name for name in requested if requested[name])
    npz = Path(output) if output.endswith(".npz") else None
    options = OutputOptions(outputs, max_length, exact or npz is not None)
    texts = _texts(source, jsonl, field)
    if npz and npz.is_dir():
        raise ConfigurationError(f"{npz} is a folder")
    if output == "-":
        append(client, source, texts, options, sys.stdout.buffer, ResumePoint())
        return
    target = Path(f"{output}.part" if npz else output)
    if target.exists() and Path(source.name).exists() and target.samefile(source.name):
        raise ConfigurationError("SOURCE and OUTPUT are the same file")
    if target.exists() and not target.is_file() and not target.is_dir():  # a device, a pipe
        try:
            with target.open("wb") as out:
                append(client, source, texts, options, out, ResumePoint())
        except BrokenPipeError:
            raise ConfigurationError(f"the reader of {target} has closed it") from None
        return
    with locked(target) as file:
        if npz and npz.exists() and not overwrite:
            raise ConfigurationError(f"{npz} is complete. Pass --overwrite to start over")
        point = ResumePoint() if overwrite else resume(file, target, texts, options)
        if point.lines:
            click.echo(f"bge: resuming after {point.lines} texts", err=True)
        append(client, source, texts, options, file, point, overwrite)
        if npz:
            write_npz(target, npz)
            target.unlink()


def append(
    client: Client,
    source: IO[str],
    texts: Iterator[Text],
    options: OutputOptions,
    file: IO[bytes],
    point: ResumePoint,
    overwrite: bool = False,
) -> None:
    """Write a line for each text. With `overwrite`, truncate the file after the first result.

    Raises:
        FingerprintError: the lines up to `point` are of another model.
    """
    results = with_vectors(client, texts, options)
    first = next(results, None)
    if first is None and point.lines == 0:
        raise ConfigurationError("SOURCE holds no text")
    if overwrite:
        file.truncate(0)
    with progress_bar("texts", count_lines(source), point.lines) as bar:
        for text, vectors in chain([first] if first else [], results):
            if point.fingerprint not in (None, vectors.fingerprint):
                raise FingerprintError(
                    f"{file.name} has vectors of model {point.fingerprint}. Given: those of "
                    f"{vectors.fingerprint}. Pass --overwrite to start over"
                )
            file.write(encode(text, vectors, options).encode())
            file.flush()
            bar.update()


def with_vectors(
    client: Client, texts: Iterator[Text], options: OutputOptions
) -> Iterator[tuple[Text, Embedding]]:
    """Yield each text with its vectors, lazily. Texts read ahead are kept in a queue."""
    texts_read: deque[Text] = deque()

    def strings() -> Iterator[str]:
        for text in texts:
            texts_read.append(text)
            yield text.text

    for vectors in client.embed_iter(
        strings(),
        dense="dense" in options.outputs,
        sparse="sparse" in options.outputs,
        colbert="colbert" in options.outputs,
        max_length=options.max_length,
    ):
        yield texts_read.popleft(), vectors


# --------------------------------------------------------------------------------- rerank


@click.command()
@click.argument("query")
@click.argument("source", type=UTF8, default="-")
@click.option("--top-n", type=click.IntRange(1), help="Print only the best N.")
@click.option("--raw-scores", is_flag=True, help="Logits instead of scores from 0 to 1.")
@jsonl_option
@field_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of columns.")
@connected("RERANKER")
def rerank(
    client: Client,
    query: str,
    source: IO[str],
    top_n: int | None,
    raw_scores: bool,
    jsonl: bool | None,
    field: str,
    as_json: bool,
) -> None:
    """Sort the lines of SOURCE, a file or - for stdin, by their relevance to QUERY.

    \b
      bge rerank "как найти минимум функции" passages.txt --top-n 5
    """
    texts = list(_texts(source, jsonl, field))
    if not texts:
        raise ConfigurationError("SOURCE holds no text")
    documents = [text.text for text in texts]
    for ranked in client.rerank(query, documents, top_n=top_n, raw_scores=raw_scores):
        text = texts[ranked.index]
        if as_json:
            line = {"line": text.line, "id": text.id, "relevance_score": ranked.relevance_score}
            click.echo(json.dumps(line | {"document": text.text}, ensure_ascii=False))
        else:
            words = plain(text.text)
            click.echo(f"{ranked.relevance_score:8.4f}  {text.line + 1:6}  {words}")


# ---------------------------------------------------------------------------------- bench


@click.command()
@click.option("--requests", default=100, show_default=True, type=click.IntRange(1))
@click.option("--concurrency", default=1, show_default=True, type=click.IntRange(1))
@click.option("--texts", default=1, show_default=True, type=click.IntRange(1), help="Per request.")
@click.option("--words", default=10, show_default=True, type=click.IntRange(1), help="Per text.")
@click.option("--rerank", "reranker", is_flag=True, help="Rerank the texts instead.")
@connected("EMBEDDINGS")
def bench(
    client: Client, requests: int, concurrency: int, texts: int, words: int, reranker: bool
) -> None:
    """Measure latency and throughput of an endpoint. The last line is JSON.

    \b
      bge bench --requests 200 --concurrency 8 --texts 32
    """
    batches = ([words_of(words, n * texts + i) for i in range(texts)] for n in range(requests))

    call: EmbedCall | RerankCall = EmbedCall(EmbedOptions(), client._infer, None)
    if reranker:
        call = RerankCall(RerankOptions(words_of(words, 0)), client._infer)
    list(timed_requests(client, call, iter([[words_of(1, 0)]]), 1))  # excludes the cold start
    start = time.perf_counter()
    samples = []
    with (
        closing(timed_requests(client, call, batches, concurrency)) as results,
        progress_bar("requests", requests) as bar,
    ):
        for sample in results:
            samples.append(sample)
            bar.update()
    seconds = np.array(samples)
    wall = time.perf_counter() - start
    p50, p99 = (float(np.percentile(seconds, p)) for p in (50, 99))
    rate = requests * texts / wall
    click.echo(f"{requests} requests of {texts} texts, {concurrency} at once")
    click.echo(f"p50 {p50 * 1e3:.1f} ms   p99 {p99 * 1e3:.1f} ms   {rate:.1f} texts/s")
    result = {"p50_ms": p50 * 1e3, "p99_ms": p99 * 1e3, "texts_per_second": rate}
    click.echo(json.dumps({name: round(value, 2) for name, value in result.items()}))


def timed_requests(
    client: Client, call: EmbedCall | RerankCall, batches: Iterator[list[str]], concurrency: int
) -> Generator[float, None, None]:
    """Send the batches and yield the seconds each took. Closing it cancels those in flight."""
    cancelled = threading.Event()
    tasks: Iterator[Task[Any]] = call.tasks(batches, lambda: client._deadline(None, cancelled))
    timed = ((_timed(exchange), deadline) for exchange, deadline in tasks)
    return run_each(client._transport, timed, concurrency, cancelled)


def _timed(exchange: Exchange[Any]) -> Exchange[list[float]]:
    start = time.perf_counter()
    yield from exchange
    return [time.perf_counter() - start]


WORDS = ("градиент", "function", "минимум", "course", "данные", "vector", "поиск", "lesson")


def words_of(length: int, start: int) -> str:
    """Return a text of `length` words, different for each `start`."""
    return " ".join(WORDS[i % len(WORDS)] + str(start) for i, _ in zip(count(start), range(length)))
