"""BGE vectors in Qdrant: collections, indexing, hybrid search, migration.

from bge_client import Client
from bge_client.qdrant import HybridSearch, Schema, Store, index

store = Store.open(path="qdrant-data")        # or url="http://localhost:6333"
with Client("http://127.0.0.1:8000") as client:
    index(store, client, "courses", [{"_id": "1", "text": "море"}])
    for hit in HybridSearch(store, client, "courses").search("вода"):
        print(hit.score, hit.text)
"""

try:
    from qdrant_client import __name__ as _  # noqa: F401
except ImportError:
    raise ImportError(
        "bge_client.qdrant needs: pip install 'bge-client[qdrant]'", name="qdrant_client"
    ) from None

from .cutover import drop_old, roll_back
from .index import IndexReport, index
from .inplace import InPlaceReport, add_in_place
from .metadata import CollectionMetadata
from .migrate import Estimate, Migration, MigrationReport
from .schema import Schema
from .search import Hit, HybridSearch, Plan, SearchResult, Stage
from .store import Store

__all__ = [
    "CollectionMetadata",
    "Estimate",
    "Hit",
    "HybridSearch",
    "InPlaceReport",
    "IndexReport",
    "Migration",
    "MigrationReport",
    "Plan",
    "Schema",
    "SearchResult",
    "Stage",
    "Store",
    "add_in_place",
    "drop_old",
    "index",
    "roll_back",
]
