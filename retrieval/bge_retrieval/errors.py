"""The exceptions that retrieval adds to those of `bge_client`."""

from __future__ import annotations

from bge_client import BGEError


class MigrationError(BGEError):
    """A copied collection differs from its source, or the source keeps changing."""

    exit_code = 6  # of `bge`
