"""The tables of `docs/bulk.md`, from a million documents to a billion: `make bench-bulk-paper`.

Bytes are measured: `bge bulk`'s own steps write the shipped course, with an engine of random
weights that is 1,024 wide. Rates and prices are `bge plan`'s. All else is multiplication. The last
line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from bge_builder.convert import convert
from bge_builder.planner.cards import Card, catalogue
from bge_retrieval.bulk import ray_steps
from bge_retrieval.bulk.engine import Engine, EngineOptions, tokenize
from bge_retrieval.bulk.folder import OutputFolder
from bge_retrieval.bulk.job import Job, open_job
from bge_retrieval.bulk.manifest import Options
from bge_retrieval.bulk.partition import parse
from bge_retrieval.bulk.sources import open_files
from checkpoints import Shape, write_pair
from plan_validation import save
from results import FOLDER
from workload import ROOT, corpus

FILE = FOLDER / "plan" / "bulk.json"
CARD_RESULTS = FOLDER / "nvidia-h100-80gb-hbm3.json"
COURSE = ROOT / "retrieval" / "examples" / "course" / "corpus.jsonl"
# One layer: the number of layers changes no byte.
WIDE = Shape(width=1024, heads=16, feed_forward=1024, layers=1)
DOCUMENTS = (10**6, 10**7, 10**8, 10**9)
CARDS = ("L4", "L40S", "H100")
POOL = 2
OUTPUTS = {"sparse": "Outputs.DENSE|SPARSE", "colbert": "Outputs.DENSE|SPARSE|COLBERT"}
# Qdrant: bytes of a dense vector that stay in memory, by --quantization; the links of a point in
# the graph (2 × m = 32 of 4 bytes); an entry of the sparse index (an id and a weight). Its guide to
# capacity adds half for versions, other metadata and segments that are being built.
COPIES = {"none": 4096, "scalar": 1024, "binary": 128}
LINKS, SPARSE_ENTRY, OVERHEAD = 128, 8, 1.5


def measure() -> dict[str, Any]:
    """Return the bytes of a row by column, its tokens, and its terms: those that differ.

    Random weights give half of the terms no weight, and trained ones few: the bytes of sparse
    vectors are those of a term with a weight, for all terms.
    """
    options = Options(text_fields=("title", "text"), colbert=True)
    pooled = replace(options, dense_dtype="float32", colbert_pool=POOL)
    with tempfile.TemporaryDirectory() as name:
        model = write_model(Path(name))
        job, job_pooled = (
            write_course(model, Path(name) / option.dense_dtype, option)
            for option in (options, pooled)
        )
        rows = pq.read_table(job.folder.vectors_path(0))
        sizes, sizes_pooled = column_bytes(job), column_bytes(job_pooled)
        terms = count_terms(model, options) / rows.num_rows
    weights = len(rows["sparse"].combine_chunks().field("indices").flatten()) / rows.num_rows
    return {
        "rows": rows.num_rows,
        "tokens": round(sum(rows["tokens"].to_pylist()) / rows.num_rows, 1),
        "terms": round(terms, 1),
        "bytes": {
            "payload": sizes["payload"] + sizes["id"],
            "float16": sizes["dense"],
            "float32": sizes_pooled["dense"],
            "sparse": round(sizes["sparse"] / weights * terms),
            "colbert": sizes["colbert"],
            "pooled": sizes_pooled["colbert"],
        },
    }


def write_model(folder: Path) -> str:
    write_pair(folder / "hub", WIDE, corpus())
    convert(folder / "hub" / "bge-m3", folder / "bge-m3", dtype="float32")
    return str(folder / "bge-m3")


def write_course(model: str, folder: Path, options: Options) -> Job:
    """Write the course as one partition, by the steps that run on Ray."""
    engine = EngineOptions(model, "cpu")
    source = open_files(str(COURSE))
    job = open_job(OutputFolder(str(folder)), source, options, Engine(engine).identity)
    context = ray_steps.Context(source, job.folder, job.manifest, engine)
    actor = ray_steps.EmbedActor(context, Engine)
    (group,) = job.pending(1)
    for prepared in ray_steps.prepare(ray_steps.to_row(group), context):
        ray_steps.write_result(actor(prepared), context)
    return job


def count_terms(model: str, options: Options) -> int:
    source = open_files(str(COURSE))
    (part,) = source.parts(options.partition_rows)
    (rows,) = source.read([part])
    texts = parse(0, part, rows, options.text_fields).texts
    return sum(len(set(text.ids[1:-1])) for text in tokenize(model, texts, None))


def column_bytes(job: Job) -> dict[str, int]:
    """Return the compressed bytes of a row by column."""
    metadata = pq.read_metadata(job.folder.vectors_path(0))
    totals: dict[str, int] = defaultdict(int)
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for index in range(group.num_columns):
            column = group.column(index)
            totals[column.path_in_schema.partition(".")[0]] += column.total_compressed_size
    return {name: round(total / metadata.num_rows) for name, total in totals.items()}


def shares() -> dict[str, float]:
    """Return the measured card's rate with more outputs, as a share of that of dense alone."""
    outputs = json.loads(CARD_RESULTS.read_text("utf-8"))["gpu"]["outputs"]
    rate = {name: entry["tokens_per_second"] for name, entry in outputs.items() if name != "date"}
    return {name: round(rate[key] / rate["Outputs.DENSE"], 3) for name, key in OUTPUTS.items()}


def work(tokens: int, card: Card, share: float) -> dict[str, Any]:
    """Return the seconds of one card, and the dollars."""
    seconds = tokens / (catalogue().speed(card).tokens_per_second * share)
    return {"hours": seconds / 3600, "dollars": seconds * catalogue().price(card)}


def plans(row: dict[str, Any], share: float) -> Iterator[dict[str, Any]]:
    cards = [catalogue().card(name) for name in CARDS]
    for documents in DOCUMENTS:
        tokens = round(documents * row["tokens"])
        yield {
            "documents": documents,
            "tokens": tokens,
            "cards": {card.name: work(tokens, card, share) for card in cards},
            "bytes": {name: documents * size for name, size in row["bytes"].items()},
            "qdrant": {
                name: round(documents * OVERHEAD * (size + LINKS)) for name, size in COPIES.items()
            },
            "qdrant_sparse": round(documents * row["terms"] * SPARSE_ENTRY),
        }


def main() -> None:
    row, rates = measure(), shares()
    measured = {card: catalogue().is_measured(catalogue().card(card)) for card in CARDS}
    content = {
        "row": row,
        "pool": POOL,
        "shares": rates,
        "measured": measured,
        "plans": list(plans(row, rates["sparse"])),
    }
    save(FILE, content)
    print(json.dumps({"row": row, "shares": rates}))


if __name__ == "__main__":
    main()
