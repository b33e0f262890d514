"""A search whose live results are compared with those of another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from ..agreement import Ranking
from .recorder import Names, Shadow

Result = TypeVar("Result")


class ShadowedSearch(Generic[Result]):
    """A search function, a sample of whose results is compared with another's.

    Vectors of two models cannot be compared, but their search results can. `live` and
    `candidate` return ids, best first, or a result from which `ids` extracts them. Without `ids`,
    only sequences are compared. Iterators never are, because they can be read only once.
    """

    def __init__(
        self,
        live: Callable[[str], Result],
        candidate: Callable[[str], Result],
        shadow: Shadow,
        *,
        names: Names = ("bge", "jina"),
        ids: Callable[[Result], Ranking] | None = None,
    ) -> None:
        self._live, self._candidate, self._shadow = live, candidate, shadow
        self._names, self._ids = names, ids

    def search(self, query: str) -> Result:
        """Return the result of `live` unchanged."""
        start = time.perf_counter()
        result = self._live(query)
        self._shadow.offer(
            query,
            lambda: self._live_ranking(result),
            lambda: self._ranking(self._candidate(query)),
            live_seconds=time.perf_counter() - start,
            names=self._names,
        )
        return result

    def _live_ranking(self, result: Result) -> Ranking:
        """Raises TypeError if reading the result might exhaust it for the caller."""
        if isinstance(result, Iterator) or not (self._ids or isinstance(result, Sequence)):
            raise TypeError("the result must be a sequence, or `ids` must be set")
        return self._ranking(result)

    def _ranking(self, result: Any) -> Ranking:
        return self._ids(result) if self._ids else list(result)
