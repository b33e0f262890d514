"""`make deploy`, `make deploy STATUS=1` and `make undeploy`: what they print and return."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import httpx2

from bge_client import BGEError, Client
from bge_client.redaction import read_secret, redact

from ..errors import BuilderError
from .api import RunPod
from .plan import plan
from .probes import TIMEOUT, make_probe, url_of
from .settings import DeployError, EndpointType, Fields, read_settings, register_secrets, table
from .wait import History, failure_report, release_lines, show, wait_for_worker

INTERRUPTED = 130  # as a shell reports SIGINT
MIN_REQUEST_SECONDS = 30.0  # for the first request, once a worker answers
BILLED_DAYS = 7


def run_deploy(
    image: str,
    endpoint_type: EndpointType,
    endpoint: str | None,
    registry: str | None,
    dry_run: bool,
    wait: float,
) -> int:
    """Create or update the endpoint, then wait up to `wait` seconds for the first vector."""
    settings = {**read_settings(endpoint_type), "image": image}
    if registry := registry or settings.get("registry"):
        settings["registry"] = registry
    key = read_secret(os.environ.get("RUNPOD_API_KEY"), "RUNPOD_API_KEY")
    if key is None:
        if not dry_run:
            raise DeployError("`RUNPOD_API_KEY` is not set")
        print("\n".join(plan(settings, None).lines()))
        print("not compared with RunPod: `RUNPOD_API_KEY` is not set; nothing was changed")
        return 0
    with RunPod(key) as runpod:
        if registry:
            settings["registry"] = runpod.registry(registry)
        change = plan(settings, existing(runpod, settings["name"], endpoint))
        print(redact("\n".join(change.lines())))
        if dry_run:
            print("nothing was changed")
            return 0
        history = History()
        if change.current is not None and change.fields:
            history.after_version = runpod.version(change.current["id"])
        try:
            result = runpod.apply(change)
        except KeyboardInterrupt:
            print("\ninterrupted: RunPod may have made the change. Look with `STATUS=1`")
            return INTERRUPTED
        for name, url in table(result, "requestUrls").items():
            print(redact(f"  {name}: {url}"))
        print(f"endpoint: {url_of(result['id'], settings['type'])}")
        if not wait:
            return 0
        return first_vector(runpod, key, result, settings["type"], wait, history)


def existing(runpod: RunPod, name: str, endpoint_id: str | None) -> Fields | None:
    return runpod.endpoint(endpoint_id) if endpoint_id else runpod.endpoint_by_name(name)


def first_vector(
    runpod: RunPod,
    key: str,
    endpoint: Fields,
    endpoint_type: str,
    seconds: float,
    history: History,
) -> int:
    """Wait for a worker and send the first request. The endpoint stays, whatever happens."""
    register_secrets(endpoint)
    endpoint_id = endpoint["id"]
    url = url_of(endpoint_id, endpoint_type)
    headers = {"Authorization": f"Bearer {key}"}
    with httpx2.Client(base_url=url, headers=headers, timeout=TIMEOUT) as http:
        probe = make_probe(endpoint_type, http, seconds)
        try:
            ready = wait_for_worker(runpod, endpoint_id, probe, history, seconds)
            send_first_request(url, key, history, ready, max(seconds - ready, MIN_REQUEST_SECONDS))
        except BuilderError:
            for line in failure_report(runpod, endpoint_id, history.workers):
                print(redact(line))
            print(remains(endpoint_id))
            raise
        except KeyboardInterrupt:
            print(f"\ninterrupted. {remains(endpoint_id)}")
            return INTERRUPTED
        finally:
            probe.close()
    return 0


def remains(endpoint_id: str) -> str:
    return (
        f"endpoint {endpoint_id} remains. `make deploy STATUS=1 ENDPOINT={endpoint_id}` shows it, "
        f"`make undeploy ENDPOINT={endpoint_id}` deletes it"
    )


def send_first_request(url: str, key: str, history: History, ready: float, timeout: float) -> None:
    """Embed a text, and print how long each stage of the cold start took."""
    start = time.monotonic()
    try:
        with Client(url, key, timeout=timeout) as client:
            vectors = client.embed(["fitness"])
    except BGEError as error:
        raise BuilderError(f"the endpoint does not answer: {error}") from None
    seconds = time.monotonic() - start
    show(
        ready + seconds, f"the endpoint answers: {vectors.model}, fingerprint {vectors.fingerprint}"
    )
    print(f"stages: {history.durations(ready)}, first vector {seconds:.1f} s")


# ---------------------------------------------------------------------- status and deletion


def named_endpoint(runpod: RunPod, endpoint_type: EndpointType, endpoint_id: str | None) -> Fields:
    """Raises DeployError if there is no endpoint of that id, or of the name in the settings."""
    name = read_settings(endpoint_type)["name"]
    endpoint = existing(runpod, name, endpoint_id)
    if endpoint is None:
        raise DeployError(f"no endpoint has the name {name}. Pass ENDPOINT=id, or TYPE=lb")
    register_secrets(endpoint)
    return endpoint


def required_key() -> str:
    key = read_secret(os.environ.get("RUNPOD_API_KEY"), "RUNPOD_API_KEY")
    if key is None:
        raise DeployError("`RUNPOD_API_KEY` is not set")
    return key


def run_status(endpoint_type: EndpointType, endpoint: str | None) -> None:
    """Print an endpoint, its workers, its last release and its cost."""
    with RunPod(required_key()) as runpod:
        current = named_endpoint(runpod, endpoint_type, endpoint)
        print(redact("\n".join(described(current))))
        workers = runpod.workers(current["id"])
        for line in [worker.description for worker in workers] or ["no worker"]:
            print(line)
        for line in release_lines(runpod.releases(current["id"])):
            print(redact(line))
        print(cost(runpod, current["id"]))


def described(endpoint: Fields) -> list[str]:
    workers = table(endpoint, "workers")
    kind = str(endpoint.get("type") or "type unknown")
    lines = [
        f"endpoint {endpoint.get('name')} ({endpoint['id']}), {kind}",
        f"image {endpoint.get('image')}",
        f"workers {workers.get('min')} to {workers.get('max')}",
    ]
    if workers.get("max") == 0:  # RunPod does this after 7 days without a request
        lines.append("no worker will start: `workers.max` is 0. `make deploy` raises it")
    return lines


def cost(runpod: RunPod, endpoint_id: str) -> str:
    """A key may lack the right to see it, which is no reason to show nothing."""
    try:
        metadata = table(runpod.billing(endpoint_id, BILLED_DAYS), "metadata")
    except DeployError as error:
        return f"cost unknown: {error}"
    total: Any = table(metadata, "totals").get("totalAmount")
    return f"cost of {BILLED_DAYS} days: {f'${total:.2f}' if is_number(total) else 'unknown'}"


def is_number(value: object) -> bool:
    return isinstance(value, int | float)


def run_undeploy(endpoint_type: EndpointType, endpoint: str | None, yes: bool) -> int:
    """Delete an endpoint. Ask first on a terminal; elsewhere require `yes`."""
    with RunPod(required_key()) as runpod:
        current = named_endpoint(runpod, endpoint_type, endpoint)
        print(redact("\n".join(described(current))))
        if not yes and not confirmed(current["id"]):
            print("nothing was deleted")
            return 1
        runpod.delete(current["id"])
        print(f"deleted: {current['id']}, with its workers and the jobs in its queue")
        return 0


def confirmed(endpoint_id: str) -> bool:
    """Raises DeployError if there is no terminal to ask on."""
    if not sys.stdin.isatty():
        raise DeployError("pass YES=1 (--yes) to delete this endpoint without being asked")
    try:
        return input(f"Delete it? Its id, to confirm ({endpoint_id}): ").strip() == endpoint_id
    except (EOFError, KeyboardInterrupt):
        print()
        return False
