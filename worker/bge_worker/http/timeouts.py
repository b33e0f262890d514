"""How long the HTTP server waits for a caller, and how long it keeps a job's result; in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timeouts:
    head: float = 60.0  # for the head of a request to arrive
    body: float = 60.0  # for its body
    chunk: float = 60.0  # for the caller to take a chunk of the reply
    unread: float = 5.0  # for the rest of a body that was not read
    linger: float = 2.0  # arriving bytes are ignored after a refusal
    keep_alive: float = 75.0  # longer than a proxy's, so that the proxy closes first
    run_result: float = 1800.0  # a result of `/run` is kept
    runsync_result: float = 60.0  # a result of `/runsync` is kept
