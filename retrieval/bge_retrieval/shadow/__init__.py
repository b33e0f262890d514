"""Shadow mode: compare live results with another provider's in the background."""

from ..agreement import agreement, kendall_tau, rank_biased_overlap
from .recorder import Names, Shadow
from .shadowed_search import ShadowedSearch
from .summary import ShadowSummary, summarize
from .thresholds import ShadowThresholds, judge_pair

__all__ = [
    "Names",
    "Shadow",
    "ShadowSummary",
    "ShadowThresholds",
    "ShadowedSearch",
    "agreement",
    "judge_pair",
    "kendall_tau",
    "rank_biased_overlap",
    "summarize",
]
