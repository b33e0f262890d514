"""`bge`: the client from a shell."""

from __future__ import annotations

import logging
import sys

import click

from .. import __version__
from ..redaction import RedactingFilter
from .evaluation import evaluate
from .migrate import migrate
from .qdrant import index, search
from .texts import bench, embed, health, info, rerank

EPILOG = """\b
Exit codes: 0 done, 1 the request was refused or has failed, 2 wrong usage or a file
that cannot be read or written, 3 the key is missing or not accepted, 4 the endpoint
did not answer or was busy (worth another try), 5 what it answered is not what was
asked for, 6 a migration's copy is not what its source is, 130 interrupted.

\b
Environment: BGE_EMBEDDINGS_ENDPOINT and BGE_RERANKER_ENDPOINT (or RUNPOD_…, which
win), RUNPOD_API_KEY; QDRANT_URL, QDRANT_API_KEY."""


@click.group(epilog=EPILOG, context_settings={"max_content_width": 88})
@click.version_option(__version__, prog_name="bge")
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr what is waited for and why.")
def bge(verbose: bool) -> None:
    """Embeddings and reranking with bge-m3 and bge-reranker-v2-m3.

    \b
      bge embed texts.txt -o vectors.jsonl --sparse
      bge rerank "how to find a minimum" passages.txt --top-n 5
      bge index passages.jsonl --collection courses --path qdrant-data
      bge search "how to find a minimum" --collection courses --path qdrant-data
      bge info
    """
    level = logging.INFO if verbose else logging.WARNING
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RedactingFilter())  # the lines of httpx and urllib3 too
    logging.basicConfig(level=level, format="bge: %(message)s", handlers=[handler])


for command in (
    embed,
    rerank,
    index,
    search,
    migrate,
    evaluate,
    info,
    health,
    bench,
):
    bge.add_command(command)
