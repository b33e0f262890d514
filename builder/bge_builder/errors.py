"""Errors that a command reports in one sentence.

BuilderError
├── ConvertError    builder/bge_builder/convert.py
├── FetchError      builder/fetch.py
├── DeployError     builder/deploy.py
└── LockedError     builder/folders.py
"""


class BuilderError(Exception):
    """One sentence to show; `python -m bge_builder` ends with it and exit code 1."""
