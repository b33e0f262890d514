"""asyncio tasks that run the tasks of a call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import Any, TypeVar

from .async_transport import AsyncTransport
from .calls import Task

Result = TypeVar("Result")


async def run_all(
    transport: AsyncTransport, tasks: list[Task[Result]], max_in_flight: int
) -> list[Result]:
    """Run tasks that share a deadline, and return their results in order.

    The first failure, of whichever task, cancels the others and is raised.
    """
    slots = asyncio.Semaphore(max_in_flight)
    running = [asyncio.create_task(_run(transport, task, slots)) for task in tasks]
    try:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
        return [result for task in running if task in done for result in task.result()]
    finally:
        await _cancel(running)


async def run_each(
    transport: AsyncTransport, tasks: Iterator[Task[Result]], max_in_flight: int
) -> AsyncGenerator[Result, None]:
    """Yield the results in order, with at most twice `max_in_flight` tasks queued or in flight.

    A failure, or closing the generator, cancels all other tasks.
    """
    slots = asyncio.Semaphore(max_in_flight)
    pending: deque[asyncio.Task[list[Result]]] = deque()
    try:
        for task in tasks:
            while pending and (len(pending) >= 2 * max_in_flight or pending[0].done()):
                for result in await pending.popleft():
                    yield result
            pending.append(asyncio.create_task(_run(transport, task, slots)))
            await asyncio.sleep(0)  # reading the texts of a chunk takes a while
        while pending:
            for result in await pending.popleft():
                yield result
    finally:
        await _cancel(pending)


async def _run(
    transport: AsyncTransport, task: Task[Result], slots: asyncio.Semaphore
) -> list[Result]:
    async with slots:
        return await transport.run(*task)


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait until they have cancelled their jobs."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
