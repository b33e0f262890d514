"""BGE vectors in Qdrant: collections, indexing, hybrid search, migration.

from bge_client import Client
from bge_retrieval import HybridSearch, Schema, Store, index

store = Store.open(path="qdrant-data")        # or url="http://localhost:6333"
with Client("http://127.0.0.1:8000") as client:
    index(store, client, "courses", [{"_id": "1", "text": "море"}])
    for hit in HybridSearch(store, client, "courses").search("вода"):
        print(hit.score, hit.text)
"""

import logging as _logging

from bge_client.redaction import RedactingFilter as _RedactingFilter

from .async_search import AsyncHybridSearch
from .async_store import AsyncStore
from .chunks import Chunker
from .errors import MigrationError
from .explain import AlignedToken, Explanation, SharedToken, explain
from .index import IndexReport, index
from .metadata import CollectionMetadata, load_probe
from .migration.added_vectors import drop_vectors, roll_back_in_place
from .migration.cutover import drop_old, roll_back
from .migration.in_place import InPlaceReport, add_in_place
from .migration.migration import Migration
from .migration.reports import Estimate, MigrationReport
from .plan import Plan
from .results import Hit, SearchResult, Stage
from .schema import Schema
from .search import HybridSearch
from .store import Store
from .tokens import ServerTokenizer, TokenizerFile

_logging.getLogger("bge_retrieval").addFilter(_RedactingFilter())

__version__ = "0.1.0"
__all__ = [
    "AlignedToken",
    "AsyncHybridSearch",
    "AsyncStore",
    "Chunker",
    "CollectionMetadata",
    "Estimate",
    "Explanation",
    "Hit",
    "HybridSearch",
    "InPlaceReport",
    "IndexReport",
    "Migration",
    "MigrationError",
    "MigrationReport",
    "Plan",
    "Schema",
    "SearchResult",
    "ServerTokenizer",
    "SharedToken",
    "Stage",
    "Store",
    "TokenizerFile",
    "add_in_place",
    "drop_old",
    "drop_vectors",
    "explain",
    "index",
    "load_probe",
    "roll_back",
    "roll_back_in_place",
]
