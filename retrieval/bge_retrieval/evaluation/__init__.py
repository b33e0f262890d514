"""Compare the quality, latency and cost of search systems on the same queries.

read_beir       → Dataset          queries, and relevance judgements if there are any
SystemBuilder   → System           a search by a plan, or by a provider's vectors
run_all         → Run per system   rankings and timings
compare         → Report           agreement, metrics, a verdict on each candidate
html                               the Report as a page
"""

from .builder import SystemBuilder
from .dataset import Dataset, read_beir, read_texts
from .kinds import Kind
from .systems import Answer, Price, Run, System, Timed, check_document_ids, run_all

try:  # fail before the queries run, not after
    from .comparison import Comparison, Measured, Report, Thresholds, compare
    from .differences import explain_moved, moved_documents
    from .report import html, shown_cases
except ImportError as error:
    raise ImportError(
        f"bge_retrieval.evaluation needs {error.name}: pip install 'bge-retrieval[eval]'",
        name=error.name,
    ) from None

__all__ = [
    "Answer",
    "Comparison",
    "Dataset",
    "Kind",
    "Measured",
    "Price",
    "Report",
    "Run",
    "System",
    "SystemBuilder",
    "Thresholds",
    "Timed",
    "check_document_ids",
    "compare",
    "explain_moved",
    "html",
    "moved_documents",
    "read_beir",
    "read_texts",
    "run_all",
    "shown_cases",
]
