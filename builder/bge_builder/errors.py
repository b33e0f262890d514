"""Errors that a command reports in one line.

BuilderError
├── ConvertError            convert.py, config.py
├── FetchError              fetch.py
├── DeployError             deploy/settings.py
│   ├── UnavailableError    deploy/api.py
│   ├── WorkerFailedError   deploy/wait.py, exit code 3
│   └── NotReadyError       deploy/wait.py, exit code 4
├── ReportError             field_report/record.py
│   └── BudgetError         field_report/budget.py
└── LockedError             folders.py
"""


class BuilderError(Exception):
    """`python -m bge_builder` prints the message and exits with `exit_code`."""

    exit_code = 1


class ConvertError(BuilderError):
    """The source cannot be converted. The message names the file, field or tensor."""


def as_text(error: OSError) -> str:
    """Return the reason and the file, without the number that `str` prints first."""
    path = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{path}"
