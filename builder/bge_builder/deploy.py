"""Create or update a RunPod endpoint from `deploy.toml`. Shows the changes before making them.

    settings   of deploy.toml, with the image and the credential
    current    the endpoint with that id or name, if it exists
    change     POST all fields, or PATCH those that differ; a second run changes nothing

Uses RunPod's REST API, version 2, as documented in 2026-08. It has no templates: an endpoint names
its image. Its lists have no pages; a response that announces another page is refused.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2

from bge_client.redaction import read_secret, redact

from .errors import BuilderError

API = "https://api.runpod.io/v2"
ENDPOINTS = "https://api.runpod.ai/v2"
SETTINGS = Path(__file__).with_name("deploy.toml")
TIMEOUT = 60.0
MAX_REASON_CHARACTERS = 500  # characters of what RunPod says
SECRET_NAME = re.compile("KEYS?$|TOKEN$|SECRET|PASSWORD")  # of a variable; fields are in camelCase
PAGE_FIELD = re.compile("next|cursor|has_?more", re.IGNORECASE)

Fields = dict[str, Any]


class DeployError(BuilderError):
    """RunPod refuses or does not respond, or the settings are invalid. The message is redacted."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(" ".join(message.split())))


@dataclass(frozen=True)
class Change:
    """The step from `current` to `settings`. Without `current`, the endpoint is created.

    A table (`gpu`, `workers`, `scaling`, `env`) is sent in full if any of its fields differs:
    `pools` without `excludedTypes` would clear the exclusions, and `env` replaces all variables.
    """

    settings: Fields
    current: Fields | None

    @property
    def fields(self) -> Fields:
        if self.current is None:
            return self.settings
        changed = {
            name: value
            for name, value in self.settings.items()
            if not is_satisfied(name, value, self.current.get(name))
        }
        if "env" in changed:  # keeps the variables that others have set
            changed["env"] = {**table(self.current, "env"), **changed["env"]}
        return changed

    def lines(self) -> list[str]:
        """Describe the change: `+` created, `~` updated, `=` unchanged."""
        name = f"endpoint {redact(self.settings['name'])}"
        if self.current is None:
            created = differences(self.settings, None)
            return [f"+ {name}", *(f"    {path} = {value}" for path, _, value in created)]
        changed = differences(self.settings, self.current)
        lines = [f"    {path}: {before} -> {after}" for path, before, after in changed]
        return [f"{'~' if lines else '='} {name} ({self.current['id']})", *lines]


def is_satisfied(name: str, setting: Any, current: Any) -> bool:
    """Whether `current` has every value of the setting. It may have further fields."""
    if name == "excludedTypes" and isinstance(setting, list):
        return {*map(str, setting)} == {*map(str, current if isinstance(current, list) else [])}
    if name in ("allowedCudaVersions", "minCudaVersion"):
        return bool((setting or None) == (current or None))
    if isinstance(setting, dict):
        return not differences(setting, current if isinstance(current, dict) else None)
    return bool(setting == current)


def differences(
    settings: Fields, current: Fields | None, prefix: str = ""
) -> list[tuple[str, str, str]]:
    """Return the path of each field that differs, its current and its new value as JSON."""
    changed: list[tuple[str, str, str]] = []
    for name, value in settings.items():
        before = current.get(name) if current else None
        if isinstance(value, dict):
            fields = before if isinstance(before, dict) else None
            changed += differences(value, fields, f"{prefix}{name}.")
        elif current is None or not is_satisfied(name, value, before):
            changed.append((prefix + name, as_text(name, before), as_text(name, value)))
    return changed


def table(fields: Fields, name: str) -> Fields:
    """Return a table of `fields`, empty if there is none."""
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def as_text(name: str, value: Any) -> str:
    if SECRET_NAME.search(name) and value is not None:
        return "***"
    return redact(json.dumps(value, ensure_ascii=False))


class RunPod:
    """The operations of RunPod's REST API that a deployment needs."""

    def __init__(self, key: str) -> None:
        """Raises DeployError if the environment's proxy is not a URL."""
        headers = {"Authorization": f"Bearer {key}"}
        try:
            self._http = httpx2.Client(base_url=API, headers=headers, timeout=TIMEOUT)
        except (httpx2.InvalidURL, ValueError) as error:
            raise DeployError(f"no connection can be made: {error}") from None

    def __enter__(self) -> RunPod:
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()

    def endpoint(self, endpoint_id: str) -> Fields:
        """Raises DeployError if there is no endpoint with that id."""
        return self._with_id(self._request("GET", f"/serverless/{quote(endpoint_id, safe='')}"))

    def endpoint_by_name(self, name: str) -> Fields | None:
        """Raises DeployError if several endpoints have that name."""
        endpoints = [
            endpoint
            for endpoint in self._list("/serverless", "endpoints")
            if base_name(endpoint.get("name")) == name
        ]
        if len(endpoints) > 1:
            ids = ", ".join(endpoint["id"] for endpoint in endpoints)
            raise DeployError(f"several endpoints have the name {name}: {ids}. Pass ENDPOINT=id")
        return endpoints[0] if endpoints else None

    def registry(self, name_or_id: str) -> str:
        """Return the id of a registry credential.

        Raises:
            DeployError: no credential has that id or name, or several have that name.
        """
        registries = self._list("/registries", "registries")
        if any(registry["id"] == name_or_id for registry in registries):
            return name_or_id
        ids = [registry["id"] for registry in registries if registry.get("name") == name_or_id]
        if len(ids) != 1:
            known = ", ".join(
                f"{registry.get('name')} ({registry['id']})" for registry in registries
            )
            raise DeployError(
                f"`registry` must name one credential of this account. Given: {name_or_id}; "
                f"known: {known or 'none'}"
            )
        return str(ids[0])

    def apply(self, change: Change) -> Fields:
        """Make the change and return the endpoint."""
        if change.current is None:
            return self._with_id(self._request("POST", "/serverless", change.fields))
        if not change.fields:
            return change.current
        path = f"/serverless/{quote(change.current['id'], safe='')}"
        return self._with_id(self._request("PATCH", path, change.fields))

    def _list(self, path: str, key: str) -> list[Fields]:
        """Raises DeployError if there is no list, an item has no id, or there are more pages."""
        reply = self._request("GET", path)
        if page_fields := [name for name in reply if PAGE_FIELD.search(name) and reply[name]]:
            raise DeployError(
                f"GET {path} returned `{page_fields[0]}`, so there may be more pages, which RunPod "
                "does not document. Pass ENDPOINT=id"
            )
        items = reply.get(key)
        if not isinstance(items, list):
            raise DeployError(f"GET {path} returned no list `{key}`")
        return [self._with_id(item) for item in items]

    @staticmethod
    def _with_id(item: Any) -> Fields:
        if not isinstance(item, dict) or not isinstance(item.get("id"), str):
            raise DeployError("RunPod returned an item without `id`")
        return item

    def _request(self, method: str, path: str, body: object = None) -> Fields:
        """Raises DeployError if there is no response, an error, or no JSON object."""
        try:
            response = self._http.request(method, path, json=body)
        except httpx2.HTTPError as error:
            raise DeployError(f"{method} {path}: no response from RunPod ({error})") from None
        if response.status_code == 401:
            raise DeployError("RunPod does not accept `RUNPOD_API_KEY`")
        try:
            reply = response.json()
        except (ValueError, RecursionError):
            reply = None
        if not response.is_success or not isinstance(reply, dict):
            raise DeployError(
                f"{method} {path}: HTTP {response.status_code}{reason(response, reply)}"
            )
        return reply


def reason(response: httpx2.Response, reply: Any) -> str:
    """Describe an RFC 9457 problem (title, detail, errors), or a response that is none."""
    if isinstance(reply, dict):
        errors = reply.get("errors")
        failures = "; ".join(map(str, errors)) if isinstance(errors, list) else ""
        parts = (reply.get("title"), reply.get("detail"), failures)
        text = ": ".join(str(part) for part in parts if part)
        return f" {text[:MAX_REASON_CHARACTERS]}" if text else ""
    if response.is_redirect:
        return ", a redirect, which is not followed"
    if not response.content:
        return " with an empty body"
    return f", not a JSON object ({response.headers.get('Content-Type', 'no content type')})"


def read_settings(path: Path) -> Fields:
    """Raises DeployError if the file is not TOML or the endpoint lacks its name or a table."""
    try:
        endpoint = tomllib.loads(path.read_text("utf-8")).get("endpoint")
        json.dumps(endpoint, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:  # TOML has dates and infinity
        raise DeployError(f"`{path.name}` is not TOML, or not JSON: {error}") from None
    if not isinstance(endpoint, dict) or not isinstance(endpoint.get("name"), str):
        raise DeployError(f"`{path.name}` must have `name` in [endpoint]")
    for name in ("env", "gpu", "scaling", "workers"):
        if not isinstance(endpoint.get(name), dict):
            raise DeployError(f"`{path.name}` must have a table [endpoint.{name}]")
    for name, value in endpoint["env"].items():
        if SECRET_NAME.search(name):
            read_secret(str(value), name)  # registers it for redaction
    return endpoint


def plan(runpod: RunPod | None, image: str, endpoint: str | None, registry: str | None) -> Change:
    """Compare the settings with the endpoint of that id, or of their name if `endpoint` is None.

    Without `runpod`, nothing is compared. `registry` replaces that of the settings.

    Raises:
        DeployError: see `RunPod`; or the endpoint has another `type`, which no update changes.
    """
    settings = {**read_settings(SETTINGS), "image": image}
    if registry := registry or settings.get("registry"):
        settings["registry"] = runpod.registry(registry) if runpod else registry
    current = None
    if runpod is not None:
        name = settings["name"]
        current = runpod.endpoint(endpoint) if endpoint else runpod.endpoint_by_name(name)
    if current is None:
        return Change(settings, None)
    kind = current.get("type") or settings.get("type")
    if kind != settings.get("type") or "cpu" in current:
        compute = "CPUs" if "cpu" in current else "GPUs"
        raise DeployError(
            f"endpoint {current['id']} has `type` {kind} and {compute}, "
            "which no update changes: delete it, or choose another `name`"
        )
    renamed = {**current, "type": kind, "name": base_name(current.get("name"))}
    return Change({**settings, "gpu": with_single_cuda_constraint(settings, current)}, renamed)


def with_single_cuda_constraint(settings: Fields, current: Fields) -> Fields:
    """Clear the other constraint: RunPod accepts a minimum or a set, and keeps an earlier one."""
    gpu, before = table(settings, "gpu"), table(current, "gpu")
    if gpu.get("minCudaVersion") and before.get("allowedCudaVersions"):
        return {"allowedCudaVersions": [], **gpu}
    if gpu.get("allowedCudaVersions") and before.get("minCudaVersion"):
        return {"minCudaVersion": "", **gpu}
    return gpu


def base_name(name: object) -> str:
    """Strip the suffix that RunPod once appended to names of endpoints with FlashBoot."""
    return str(name).strip().removesuffix("-fb").strip()
