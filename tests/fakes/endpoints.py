"""Both kinds of endpoint with the real worker processes behind them, behind one interface.

with BalancedEndpoint(runtime, tmp_path) as endpoint:
    worker = endpoint.start()
    Client(endpoint.url, KEY).embed("море")
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import Generic, Self, TypeVar

from conftest import MODELS, ROOT
from fakes.load_balancer import BalancedWorker, LoadBalancer
from fakes.runpod_server import JobServer
from fakes.serving import metric
from fakes.worker_process import WorkerProcess

Worker = TypeVar("Worker", WorkerProcess, BalancedWorker)


class Endpoint(ABC, Generic[Worker]):
    """An endpoint without workers at first. They end with the block."""

    url: str

    def __init__(self, runtime: Path, logs: Path) -> None:
        self._models = {
            "BGE_DEVICE": "cpu",
            "BGE_EMBED_MODEL": str(runtime / MODELS[0]),
            "BGE_RERANK_MODEL": str(runtime / MODELS[1]),
        }
        self._logs = logs
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @abstractmethod
    def start(self) -> Worker:
        """Start a worker, and wait until it can answer."""

    @abstractmethod
    def waiting(self) -> int:
        """Return how many requests found no worker."""

    @abstractmethod
    def in_flight(self, worker: Worker) -> int:
        """Return how many requests the worker has not answered."""

    @abstractmethod
    def kill(self, worker: Worker) -> None:
        """End a worker, as a lost machine does."""

    @abstractmethod
    def drain(self, worker: Worker) -> None:
        """Send SIGTERM, and wait until the worker has ended."""


class QueueEndpoint(Endpoint[WorkerProcess]):
    def __init__(self, runtime: Path, logs: Path) -> None:
        super().__init__(runtime, logs)
        self.jobs = self._stack.enter_context(JobServer())
        self.url = self.jobs.url

    def start(self) -> WorkerProcess:
        handler = ROOT / "worker" / "handler.py"
        worker = self._stack.enter_context(WorkerProcess(handler, self.jobs, self._models))
        worker.wait_ready(60)
        return worker

    def waiting(self) -> int:
        return int(self.jobs.health()["jobs"]["inQueue"])

    def in_flight(self, worker: WorkerProcess) -> int:
        return len(self.jobs.held_by(worker.name))

    def kill(self, worker: WorkerProcess) -> None:
        worker.kill()
        self.jobs.lose(worker.name)

    def drain(self, worker: WorkerProcess) -> None:
        worker.terminate()
        worker.wait(40)
        self.jobs.lose(worker.name)


class BalancedEndpoint(Endpoint[BalancedWorker]):
    def __init__(self, runtime: Path, logs: Path) -> None:
        super().__init__(runtime, logs)
        self.balancer = self._stack.enter_context(LoadBalancer())
        self.url = self.balancer.url

    def start(self) -> BalancedWorker:
        worker = BalancedWorker(self._models, self._logs / "server.log")
        self._stack.enter_context(worker)
        self.balancer.add(worker)
        worker.wait_for(200)
        return worker

    def waiting(self) -> int:
        return self.balancer.refused

    def in_flight(self, worker: BalancedWorker) -> int:
        return self.balancer.in_flight(worker)

    def kill(self, worker: BalancedWorker) -> None:
        worker.process.kill()

    def drain(self, worker: BalancedWorker) -> None:
        worker.terminate()
        worker.process.wait(40)


def cancelled_requests(worker: BalancedWorker) -> float:
    """Return how many requests a worker dropped since their callers were gone."""
    return metric(worker.url, 'bge_requests_total{route="/native/embed",status="499"}')


ENDPOINTS = {"queue": QueueEndpoint, "balancer": BalancedEndpoint}
