"""Create an example of a collection to migrate: unnamed vectors of another model, with an alias.

    python retrieval/examples/old_collection.py qdrant-data

The vectors are hashed word counts of 1,024 dimensions. They replace a hosted model's, so that the
example needs no key. `bge migrate courses courses_bge` migrates the collection.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from pathlib import Path

import numpy as np
from qdrant_client import QdrantClient, models

CORPUS = Path(__file__).parent / "course" / "corpus.jsonl"
DIMENSIONS = 1024


def hashed(text: str) -> list[float]:
    """Return the counts of the words of a text, hashed into 1,024 buckets."""
    vector = np.zeros(DIMENSIONS)
    for word in re.findall(r"\w+", text.lower()):
        vector[zlib.crc32(word.encode()) % DIMENSIONS] += 1
    return vector.tolist()


def main(path: str) -> None:
    client = QdrantClient(path=path)
    if client.collection_exists("courses_v1"):
        sys.exit(f"courses_v1 already exists in {path}")
    params = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
    client.create_collection("courses_v1", vectors_config=params)
    lines = CORPUS.read_text("utf-8").splitlines()
    points = [
        models.PointStruct(id=index, vector=hashed(value["text"]), payload=value)
        for index, value in enumerate(map(json.loads, lines))
    ]
    client.upsert("courses_v1", points)
    alias = models.CreateAlias(collection_name="courses_v1", alias_name="courses")
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
    print(f"courses_v1: {len(points)} points, alias `courses`")
    client.close()


if __name__ == "__main__":
    main(sys.argv[1])
