"""Rankings of documents from searches for points, of which a document may have several."""

from __future__ import annotations

from collections.abc import Callable

from .systems import DEPTH, Answer, Ranking

MAX_POINTS = 4_096  # per query


class UniqueDocuments:
    """Search for the best 100 documents where a document may have several points.

    Raises the limit until there are 100 documents. The next query starts with the same limit, so
    after the warm-up each query needs one search, and the measured time is that of one search.
    """

    def __init__(self, search: Callable[[str, int], Answer]) -> None:
        self._search = search
        self._points = DEPTH

    def __call__(self, query: str) -> Answer:
        seconds, tokens = 0.0, 0
        while True:
            answer = self._search(query, self._points)
            seconds, tokens = seconds + answer.model_seconds, tokens + answer.tokens
            best = _best_points(answer.ranking)
            is_exhausted = answer.points < self._points or self._points == MAX_POINTS
            if len(best) >= DEPTH or is_exhausted:
                return answer._replace(ranking=best[:DEPTH], model_seconds=seconds, tokens=tokens)
            self._points = min(4 * self._points, MAX_POINTS)


def _best_points(ranking: Ranking) -> Ranking:
    """Keep the best point (chunk) of each document."""
    best: dict[str, float] = {}
    for document_id, score in ranking:
        best.setdefault(document_id, score)
    return list(best.items())
