"""Errors that a command reports in one line.

BuilderError
├── ConvertError    convert.py
├── FetchError      fetch.py
├── DeployError     deploy.py
└── LockedError     folders.py
"""


class BuilderError(Exception):
    """`python -m bge_builder` prints the message and exits with code 1."""
