"""A fake of RunPod's cloud side, for workers and for callers of the endpoint.

    with JobServer() as server, WorkerProcess(script, server) as worker:
        job = server.submit({"texts": ["hello"]})
        reply = server.result(job)
        requests.post(f"{server.url}/runsync", json={"input": {"texts": ["hello"]}})

The SDK's worker loop polls `job-take` (or `job-take-batch`) for work and `job-stop` for
cancellations, posts each reply to `job-done` and sends pings from a separate process. The fake
serves all of these routes and records protocol errors of a worker in `violations`. Callers have
`/run`, `/runsync`, `/status`, `/cancel` and `/health`.
"""

import itertools
import json
import socket
import socketserver
import struct
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal, NoReturn, Self
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True)
class Answer:
    """The reply that a worker posted for a job, and its size in bytes."""

    body: dict[str, Any]
    size: int


class JobServer:
    """Hands out jobs and receives replies. Its methods are thread-safe.

    Its public attributes change while a worker runs. Read them in `wait_for` or after it stopped.
    """

    def __init__(self, poll_seconds: float = 1.0, port: int = 0) -> None:
        self.taken: list[str] = []
        self.results: dict[str, list[Answer]] = {}
        self.pings: list[dict[str, str]] = []
        self.workers: set[str] = set()  # that have polled for jobs
        self.violations: list[str] = []
        # How to fail the next posts of results: an HTTP status, or a connection reset.
        self.faults: deque[int | Literal["reset"]] = deque()

        self._poll_seconds = poll_seconds
        self._condition = threading.Condition()
        self._closed = False
        self._job_numbers = itertools.count(1)
        self._worker_numbers = itertools.count(1)
        self._submitted: set[str] = set()
        self._pending: deque[Any] = deque()
        self._holders: dict[str, str] = {}  # job → the worker that took it
        self._stops: defaultdict[str, list[str]] = defaultdict(list)  # worker → jobs to stop
        self._cancelled: set[str] = set()
        self._inputs: dict[str, Any] = {}
        self._unreadable: dict[str, str] = {}  # job → why its reply is invalid
        self._http = _HTTPServer(self, port)
        self.url = f"http://127.0.0.1:{self._http.port}/v2/fake"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    # Called by tests.

    def environment(self) -> dict[str, str]:
        """Return the environment of a worker process. Each call names a new worker."""
        endpoint = f"http://127.0.0.1:{self._http.port}/v2/fake"
        return {
            # The SDK appends "&name=value" to these URLs, so they need a "?".
            "RUNPOD_WEBHOOK_GET_JOB": f"{endpoint}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{endpoint}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{endpoint}/ping/$RUNPOD_POD_ID?gpu=none",
            "RUNPOD_PING_INTERVAL": "1000",  # the SDK's ping process dies below one second
            "RUNPOD_POD_ID": f"worker-{next(self._worker_numbers)}",
            "RUNPOD_AI_API_KEY": "not-a-key",
            "RUNPOD_SKIP_GPU_CHECK": "true",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "NO_PROXY": "127.0.0.1",  # pings must not use a proxy
            "no_proxy": "127.0.0.1",
        }

    def submit(self, job_input: Any) -> str:
        job_id = f"job-{next(self._job_numbers)}"
        with self._condition:
            self._submitted.add(job_id)
            self._inputs[job_id] = job_input
            self._pending.append({"id": job_id, "input": job_input})
            self._condition.notify_all()
        return job_id

    def send(self, *elements: object) -> None:
        """Queue elements unchanged, valid jobs or not; a batch request gets them together."""
        with self._condition:
            for element in elements:
                if isinstance(element, dict) and isinstance(element.get("id"), str):
                    self._submitted.add(element["id"])
            self._pending.extend(elements)
            self._condition.notify_all()

    def cancel(self, job_id: str) -> None:
        """Withdraw a waiting job, or stop a running one. Ignores an answered one."""
        with self._condition:
            self._pending = deque(job for job in self._pending if job["id"] != job_id)
            if job_id not in self.results:
                self._cancelled.add(job_id)
                self._condition.notify_all()
            if job_id in self._holders and job_id not in self.results:
                self._stops[self._holders[job_id]].append(job_id)
                self._condition.notify_all()

    def result(self, job_id: str, timeout: float = 10.0) -> dict[str, Any]:
        """Wait for the first reply to the job and return its body."""
        with self._condition:
            try:
                self.wait_for(lambda: job_id in self.results or job_id in self._unreadable, timeout)
            except TimeoutError:
                state = "taken" if job_id in self._holders else "not taken"
                raise TimeoutError(
                    f"{job_id}: {state}, no reply after {timeout} s; {self.violations=}"
                ) from None
            if job_id in self._unreadable:
                raise AssertionError(self._unreadable[job_id])
            return self.results[job_id][0].body

    def lose(self, worker: str) -> None:
        """Requeue the jobs of a worker, as the platform does when its pings stop."""
        with self._condition:
            for job_id in self.held_by(worker):
                del self._holders[job_id]
                self._pending.append({"id": job_id, "input": self._inputs[job_id]})
            self._condition.notify_all()

    def held_by(self, worker: str) -> list[str]:
        """Return the jobs that a worker took and has not answered."""
        with self._condition:
            held = [job for job, holder in self._holders.items() if holder == worker]
            return [job for job in held if job not in self.results]

    def state(self, job_id: str, wait: float = 0.0) -> dict[str, Any] | None:
        """Return the status that callers see, after waiting up to `wait` seconds for the end."""
        is_over = lambda: job_id in self.results or job_id in self._cancelled or self._closed  # noqa: E731
        with self._condition:
            if job_id not in self._submitted:
                return None
            self._condition.wait_for(is_over, wait)
            if job_id in self._cancelled:
                return {"id": job_id, "status": "CANCELLED"}
            if job_id not in self.results:
                state = "IN_PROGRESS" if job_id in self._holders else "IN_QUEUE"
                return {"id": job_id, "status": state}
            body = self.results[job_id][0].body
            status = "FAILED" if "error" in body else "COMPLETED"
            return {"id": job_id, "status": status} | body

    def health(self) -> dict[str, Any]:
        with self._condition:
            ready = len(self.workers)
            jobs = {"completed": len(self.results), "inQueue": len(self._pending)}
            return {"jobs": jobs, "workers": {"ready": ready, "idle": ready, "unhealthy": 0}}

    def wait_for(self, condition: Callable[[], object], timeout: float = 10.0) -> None:
        """Block until `condition()` is true. It is checked after every event."""
        with self._condition:
            if not self._condition.wait_for(condition, timeout):
                raise TimeoutError(f"still waiting after {timeout} s; {self.violations=}")

    # Called by workers.

    def take(self, worker: str, limit: int, is_gone: Callable[[], bool]) -> list[dict[str, Any]]:
        with self._condition:
            self.workers.add(worker)
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._pending or self._closed, self._poll_seconds)
            if is_gone():  # a worker killed while polling must not take a job
                return []
            jobs = [self._pending.popleft() for _ in range(min(limit, len(self._pending)))]
            for job in jobs:
                if isinstance(job, dict) and job.get("id") in self._submitted:
                    self._holders[job["id"]] = worker
                    self.taken.append(job["id"])
            self._condition.notify_all()
            return jobs

    def stops(self, worker: str) -> list[str]:
        with self._condition:
            has_stops = lambda: self._stops[worker] or self._closed  # noqa: E731
            self._condition.wait_for(has_stops, self._poll_seconds)
            return self._stops.pop(worker, [])

    def answer(self, worker: str, job_id: str, raw: bytes) -> None:
        with self._condition:
            if job_id not in self._submitted:
                self.violations.append(f"{job_id}: answered, but there is no such job")
            elif self._holders.get(job_id) != worker:
                self.violations.append(f"{job_id}: answered by {worker}, which did not take it")
            elif job_id in self.results:
                self.violations.append(f"{job_id}: answered again")
            self._store_answer(job_id, raw)
            self._condition.notify_all()

    def ping(self, params: dict[str, str]) -> None:
        with self._condition:
            self.pings.append(params)
            self._condition.notify_all()

    def violation(self, message: str) -> None:
        with self._condition:
            self.violations.append(message)
            self._condition.notify_all()

    def _store_answer(self, job_id: str, raw: bytes) -> None:
        try:
            body = _parse_reply(raw)
        except ValueError as error:
            self._unreadable[job_id] = f"{job_id}: {error}"
            self.violations.append(self._unreadable[job_id])
        else:
            self.results.setdefault(job_id, []).append(Answer(body, len(raw)))


def _parse_reply(raw: bytes) -> dict[str, Any]:
    """Parse a reply as strictly as callers do. Raises ValueError if it is invalid."""
    body = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    if not isinstance(body, dict):
        raise ValueError(f"the reply must be an object, not {type(body).__name__}")
    if not isinstance(body.get("error", ""), str):
        raise ValueError("`error` must be a string: the platform loses anything else")
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class _HTTPServer(socketserver.ThreadingTCPServer):
    request_queue_size = 128  # a worker may post all its replies at once

    def __init__(self, jobs: JobServer, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.jobs = jobs
        self.port: int = self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exception()
        if not isinstance(error, ConnectionError):  # a killed worker drops its connections
            self.jobs.violation(f"{error!r} in JobServer. This is a bug.")


class _Handler(BaseHTTPRequestHandler):
    """HTTP/1.0, one connection per request: no thread outlives its request."""

    server: _HTTPServer

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        params = dict(parse_qsl(url.query))
        match url.path.split("/")[3:]:
            case ["job-take", worker]:
                jobs = self.server.jobs.take(worker, 1, self._is_client_gone)
                self._reply(jobs[0] if jobs else None)
            case ["job-take-batch", worker]:
                limit = int(params["batch_size"])
                self._reply(self.server.jobs.take(worker, limit, self._is_client_gone) or None)
            case ["job-stop", worker]:
                stops = self.server.jobs.stops(worker)
                self._reply({"jobsToStop": stops} if stops else None)
            case ["ping", _]:
                self.server.jobs.ping(params)
                self._reply({})
            case ["status", job_id]:
                self._reply_state(self.server.jobs.state(job_id))
            case ["health"]:
                self._reply(self.server.jobs.health())
            case _:
                self._unknown_route()

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        url = urlsplit(self.path)
        jobs = self.server.jobs
        match url.path.split("/")[3:]:
            case ["run" | "runsync" as route]:
                wait = float(dict(parse_qsl(url.query)).get("wait", 90_000)) / 1e3
                job_id = jobs.submit(json.loads(raw)["input"])
                self._reply_state(jobs.state(job_id, wait if route == "runsync" else 0))
            case ["cancel", job_id]:
                jobs.cancel(job_id)
                self._reply_state(jobs.state(job_id))
            case ["job-done", *_] if jobs.faults:
                self._fail(jobs.faults.popleft())
            case ["job-done", worker, job_id]:
                # 200 even for a violation: otherwise the SDK posts it up to three more times.
                jobs.answer(worker, job_id, raw)
                self._reply({})
            case _:
                self._unknown_route()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def _reply(self, body: object | None) -> None:
        if body is None:
            self.send_response(204)
            self.end_headers()
            return
        payload = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _reply_state(self, state: dict[str, Any] | None) -> None:
        if state is None:
            self.send_error(404)
        else:
            self._reply(state)

    def _fail(self, fault: int | Literal["reset"]) -> None:
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.send_error(fault)

    def _unknown_route(self) -> None:
        self.server.jobs.violation(f"{self.command} {self.path}: no such route")
        self.send_error(404)

    def _is_client_gone(self) -> bool:
        try:
            return self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True
