"""Shadow mode: compare live results with another provider's in the background."""

from .agreement import agreement, kendall_tau, rank_biased_overlap
from .recorder import Names, Shadow
from .search import ShadowedSearch
from .summary import ShadowSummary, summarize

__all__ = [
    "Names",
    "Shadow",
    "ShadowSummary",
    "ShadowedSearch",
    "agreement",
    "kendall_tau",
    "rank_biased_overlap",
    "summarize",
]
