"""A driver of exchanges without sockets or threads, and with a clock that pauses move."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from bge_client.deadline import Deadline
from bge_client.protocol import DropConnections, Exchange, Pause, Request, Response, Step

Reply = Response | BaseException


class Driver:
    """Answers each request with the next reply. `unfinished` is whether a job is known to run."""

    def __init__(self, replies: Iterable[Reply], seconds: float = 60.0) -> None:
        self.now = 0.0
        self.deadline = Deadline(seconds, clock=lambda: self.now)
        self.deadline.start()
        self.steps: list[Step] = []
        self.unfinished = False
        self._replies = iter(replies)

    def run(self, exchange: Exchange[Any]) -> Any:
        try:
            step = next(exchange)
            while True:
                self.steps.append(step)
                result: Any = self._perform(step)
                is_error = isinstance(result, BaseException)
                step = exchange.throw(result) if is_error else exchange.send(result)
        except StopIteration as stop:
            return stop.value

    def _perform(self, step: Step) -> Reply | None:
        if isinstance(step, Pause):
            self.now += step.seconds
            return None if self.deadline.remaining else self.deadline.error()
        if isinstance(step, DropConnections):
            return None
        reply = next(self._replies, None) or self.deadline.error()
        if isinstance(reply, Response) and not step.is_cleanup:
            state = reply.body.decode()
            if '"status"' in state:
                self.unfinished = "IN_" in state
            elif reply.status == 404:
                self.unfinished = False
        return reply

    @property
    def paths(self) -> list[str]:
        return [step.path.split("?")[0] for step in self.steps if isinstance(step, Request)]

    @property
    def pauses(self) -> list[float]:
        return [step.seconds for step in self.steps if isinstance(step, Pause)]


def job(state: Any, status: int = 200, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, named, json.dumps(state).encode())
