"""How good, how fast and how dear search is: two systems or more, asked the same queries.

read_beir → Dataset          queries, and which documents answer them
run_all   → Run per system   what each found, how long it took
compare   → Report           metrics, their differences, a verdict on each candidate
report    text, html         the Report for people
"""

from .dataset import Dataset, read_beir
from .systems import Answer, Price, Run, System, Timed, run_all

try:  # here, not where they are used: an hour of queries must not end with this error
    from .comparison import Comparison, Measured, Report, Thresholds, compare
    from .report import html, text
except ImportError as error:
    raise ImportError(
        f"bge_client.evaluate needs {error.name}: pip install 'bge-client[eval]'", name=error.name
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
