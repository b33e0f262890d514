"""The worker: texts in, vectors out; query and documents in, scores out."""

__version__ = "0.1.0"
