"""`bge`: the command line of the client.

Other packages add commands by entry points of the group `bge_client.commands`. An error of theirs
may define its exit code as the class attribute `exit_code`.
"""

from __future__ import annotations

import logging
import sys

import click

from .. import __version__
from ..redaction import RedactingFilter
from .command import connected, exit_codes, plain, refuse, refuse_unused
from .endpoint import health, info, warm_up
from .group import CommandGroup
from .probe import probe
from .progress import count_lines, progress_bar
from .texts import bench, embed, rerank

__all__ = [
    "bge",
    "connected",
    "count_lines",
    "exit_codes",
    "plain",
    "progress_bar",
    "refuse",
    "refuse_unused",
]

EPILOG = """\b
Exit codes: 0 success, 1 the request was refused or failed, 2 invalid usage or an
unusable file, 3 the key is missing or not accepted, 4 the endpoint did not respond or
was busy (retry later), 5 an invalid response or vectors of another model, 6 a migrated
copy differs from its source, 7 an evaluation that did not pass, 130 interrupted.

\b
Environment: BGE_EMBEDDINGS_ENDPOINT and BGE_RERANKER_ENDPOINT (RUNPOD_… takes
precedence), RUNPOD_API_KEY or BGE_API_KEY; QDRANT_URL, QDRANT_API_KEY."""


@click.group(cls=CommandGroup, epilog=EPILOG, context_settings={"max_content_width": 88})
@click.version_option(__version__, prog_name="bge")
@click.option("-v", "--verbose", is_flag=True, help="Log waiting and retries to stderr.")
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
    handler.addFilter(RedactingFilter())  # also the log lines of httpx and urllib3
    logging.basicConfig(level=level, format="bge: %(message)s", handlers=[handler])


for command in (embed, rerank, info, health, warm_up, probe, bench):
    bge.add_command(command)
