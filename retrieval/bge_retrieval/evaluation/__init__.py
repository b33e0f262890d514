"""Compare the quality, latency and cost of search systems on the same queries.

read_beir → Dataset          queries and relevance judgements
run_all   → Run per system   rankings and timings
compare   → Report           metrics, their differences, a verdict on each candidate
report    text, html         the Report in readable form
"""

from .dataset import Dataset, read_beir
from .systems import Answer, Price, Run, System, Timed, run_all

try:  # fail before the queries run, not after
    from .comparison import Comparison, Measured, Report, Thresholds, compare
    from .report import html, text
except ImportError as error:
    raise ImportError(
        f"bge_retrieval.evaluation needs {error.name}: pip install 'bge-retrieval[eval]'",
        name=error.name,
    ) from None

__all__ = [
    "Answer",
    "Comparison",
    "Dataset",
    "Measured",
    "Price",
    "Report",
    "Run",
    "System",
    "Thresholds",
    "Timed",
    "compare",
    "html",
    "read_beir",
    "run_all",
    "text",
]
