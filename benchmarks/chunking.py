"""Long documents indexed whole and in chunks, by the judged queries of the shipped course.

A long document is a passage of the course among random passages of the miniature's corpus, so the
course's judgements are those of its documents. Bytes are those of bge-m3's 1,024 dimensions,
without ColBERT vectors. The miniature measures lexical overlap: a trained model has other
differences.

The last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from typing import Any

from qdrant_client import models

from bge_client import Client
from bge_retrieval import Chunker, Schema, ServerTokenizer, Store, TokenizerFile, index
from bge_retrieval.evaluation import SystemBuilder, compare, read_beir, run_all
from processes import http_server
from results import options, report, with_date
from workload import MINIATURE, ROOT, corpus, model_settings

COURSE = ROOT / "retrieval" / "examples" / "course"
DIMENSIONS = 1024  # of bge-m3
KINDS = ("dense", "sparse", "hybrid")
WAYS: dict[str, dict[str, Any] | None] = {
    "whole": None,
    "512 tokens": {"tokens": 512, "overlap": 64},
    "256 tokens": {"tokens": 256, "overlap": 32},
    "256 tokens, title": {"tokens": 256, "overlap": 32, "title_field": "title"},
    "128 tokens": {"tokens": 128, "overlap": 16},
}


def long_documents(fillers: int) -> list[dict[str, str]]:
    """Return a document for each passage of the course: it and `fillers` others, in random order.

    The title names the document and says nothing of the passage.
    """
    rng = random.Random(0)
    documents = []
    lines = (COURSE / "corpus.jsonl").read_text("utf-8").splitlines()
    for number, passage in enumerate(map(json.loads, lines)):
        texts = [f"{passage['title']}. {passage['text']}", *rng.sample(corpus(), fillers)]
        rng.shuffle(texts)
        title = f"Конспект {number}"
        documents.append({"_id": passage["_id"], "title": title, "text": "\n\n".join(texts)})
    return documents


def measure(fillers: int) -> Iterator[tuple[str, dict[str, Any]]]:
    documents = long_documents(fillers)
    tokenizer = TokenizerFile(MINIATURE / "bge-m3" / "tokenizer.json")
    with (
        tempfile.TemporaryDirectory() as folder,
        http_server(model_settings(MINIATURE)) as server,
        Client(server.url) as client,
        Store.open(path=folder) as store,
    ):
        for name, chunks in WAYS.items():
            chunker = chunks and Chunker(ServerTokenizer(client), **chunks)
            indexed = index(store, client, name, documents, schema=Schema(), chunker=chunker)
            entry = {"points": indexed.written, "seconds to index": round(indexed.seconds, 1)}
            entry |= sizes(store, name, tokenizer) | quality(store, client, name)
            yield "long documents", {name: with_date(entry)}


def sizes(store: Store, collection: str, tokenizer: TokenizerFile) -> dict[str, Any]:
    """Return the tokens and bytes of a collection, ColBERT vectors not included."""
    field = store.info(collection).config.metadata["bge"]["text_fields"][0]  # type: ignore[index]
    texts, payload, sparse, points = [], 0, 0, 0
    for page in store.scroll(collection, with_vectors=True):
        for point in page:
            points += 1
            payload += len(json.dumps(point.payload, ensure_ascii=False).encode())
            vectors: Any = point.vector
            assert isinstance(vectors["sparse"], models.SparseVector)
            sparse += 8 * len(vectors["sparse"].indices)  # an id and a float of 4 bytes each
            chunk: Any = point.payload
            for key in field.split("."):
                chunk = chunk[key]
            texts.append(chunk)
    lengths = [len(tokens) + 2 for tokens in tokenizer.tokens(texts)]  # and special tokens
    return {
        "tokens embedded": sum(lengths),
        "longest text, tokens": max(lengths),
        "dense, MB": round(4 * DIMENSIONS * points / 1e6, 2),
        "sparse, MB": round(sparse / 1e6, 2),
        "payloads, MB": round(payload / 1e6, 2),
    }


def quality(store: Store, client: Client, collection: str) -> dict[str, Any]:
    data = read_beir(COURSE)
    with SystemBuilder(store, client, client) as builder:
        systems = [builder.system(kind, kind, collection) for kind in KINDS]
        runs = run_all(systems, data.queries)
    measured = compare(runs, data.qrels, KINDS[0]).systems
    entry = {f"{system.name}, nDCG@10": round(system.means["nDCG@10"], 4) for system in measured}
    return entry | {"p50 of hybrid, ms": round(measured[-1].p50_ms, 1)}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--fillers", type=int, default=9, help="other passages of a document")
    args = parser.parse_args()
    report(measure(args.fillers), save=args.save)


if __name__ == "__main__":
    main()
