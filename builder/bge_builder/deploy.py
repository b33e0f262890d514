"""An endpoint on RunPod as `deploy.toml` says, shown before it is changed.

    wanted    the settings, the image, the credential
    current   the endpoint of that id or name, if there is one
    change    POST all of it, or PATCH the fields that differ; a second run changes nothing

Against RunPod's REST API, version 2, as documented in 2026-08. It has no templates: an endpoint
names its image. Its lists are whole; a reply that speaks of another page is refused.
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
SECONDS = 60.0
MAX_DETAIL = 500  # characters of what RunPod says
SECRET_NAME = re.compile("KEYS?$|TOKEN$|SECRET|PASSWORD")  # of a variable; fields are in camelCase
ANOTHER_PAGE = re.compile("next|cursor|has_?more", re.IGNORECASE)

Fields = dict[str, Any]


class DeployError(BuilderError):
    """RunPod refuses or does not answer, or the settings cannot be read; redacted."""

    def __init__(self, sentence: str) -> None:
        super().__init__(redact(" ".join(sentence.split())))


@dataclass(frozen=True)
class Change:
    """What is sent: all of `wanted` if there is no endpoint (`current` is None), else what differs.

    A table of several fields (`gpu`, `workers`, `scaling`, `env`) is sent whole when one of them
    differs: `pools` without `excludedTypes` would clear the exclusions, and `env` replaces all.
    """

    wanted: Fields
    current: Fields | None

    @property
    def fields(self) -> Fields:
        if self.current is None:
            return self.wanted
        changed = {
            name: value
            for name, value in self.wanted.items()
            if not same(name, value, self.current.get(name))
        }
        if "env" in changed:  # those that others have set stay
            changed["env"] = {**table(self.current, "env"), **changed["env"]}
        return changed

    def lines(self) -> list[str]:
        """For a reader: `+` new, `~` from -> to, `=` as it is."""
        name = f"endpoint {redact(self.wanted['name'])}"
        if self.current is None:
            created = differences(self.wanted, None)
            return [f"+ {name}", *(f"    {path} = {value}" for path, _, value in created)]
        changed = differences(self.wanted, self.current)
        shown = [f"    {path}: {before} -> {after}" for path, before, after in changed]
        return [f"{'~' if shown else '='} {name} ({self.current['id']})", *shown]


def same(name: str, wanted: Any, current: Any) -> bool:
    """Whether `current` has all that is wanted; it may have more. The order of pools counts."""
    if name == "excludedTypes" and isinstance(wanted, list):
        return {*map(str, wanted)} == {*map(str, current if isinstance(current, list) else [])}
    if name in ("allowedCudaVersions", "minCudaVersion"):
        return bool((wanted or None) == (current or None))
    if isinstance(wanted, dict):
        return not differences(wanted, current if isinstance(current, dict) else None)
    return bool(wanted == current)


def differences(
    wanted: Fields, current: Fields | None, prefix: str = ""
) -> list[tuple[str, str, str]]:
    """Each field that is not as wanted: its path, what it is and what it is to be, as JSON."""
    changed: list[tuple[str, str, str]] = []
    for name, value in wanted.items():
        before = current.get(name) if current else None
        if isinstance(value, dict):
            fields = before if isinstance(before, dict) else None
            changed += differences(value, fields, f"{prefix}{name}.")
        elif current is None or not same(name, value, before):
            changed.append((prefix + name, shown(name, before), shown(name, value)))
    return changed


def table(fields: Fields, name: str) -> Fields:
    """One of its tables; empty if there is none."""
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def shown(name: str, value: Any) -> str:
    if SECRET_NAME.search(name) and value is not None:
        return "***"
    return redact(json.dumps(value, ensure_ascii=False))


class RunPod:
    """RunPod's REST API, as far as it is needed here."""

    def __init__(self, key: str) -> None:
        """Raises DeployError: the proxy of the environment is not a URL."""
        headers = {"Authorization": f"Bearer {key}"}
        try:
            self._http = httpx2.Client(base_url=API, headers=headers, timeout=SECONDS)
        except (httpx2.InvalidURL, ValueError) as error:
            raise DeployError(f"no connection can be made: {error}") from None

    def __enter__(self) -> RunPod:
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()

    def endpoint(self, given_id: str) -> Fields:
        """Raises DeployError: there is none of that id."""
        return self._identified(self._request("GET", f"/serverless/{quote(given_id, safe='')}"))

    def endpoint_called(self, name: str) -> Fields | None:
        """Raises DeployError: there are several of that name."""
        endpoints = [
            endpoint
            for endpoint in self._list("/serverless", "endpoints")
            if plain(endpoint.get("name")) == name
        ]
        if len(endpoints) > 1:
            ids = ", ".join(endpoint["id"] for endpoint in endpoints)
            raise DeployError(f"several endpoints are called {name}: {ids}. Pass ENDPOINT=id")
        return endpoints[0] if endpoints else None

    def registry(self, name_or_id: str) -> str:
        """The id of a registry credential.

        Raises:
            DeployError: there is none of that id or name, or several of that name.
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
                f"there are: {known or 'none'}"
            )
        return str(ids[0])

    def apply(self, change: Change) -> Fields:
        """Return the endpoint once it is as wanted."""
        if change.current is None:
            return self._identified(self._request("POST", "/serverless", change.fields))
        if not change.fields:
            return change.current
        path = f"/serverless/{quote(change.current['id'], safe='')}"
        return self._identified(self._request("PATCH", path, change.fields))

    def _list(self, path: str, key: str) -> list[Fields]:
        """Raises DeployError: no list, an item without an id, or a list of several pages."""
        reply = self._request("GET", path)
        if more := [name for name in reply if ANOTHER_PAGE.search(name) and reply[name]]:
            raise DeployError(
                f"GET {path} answered a page and `{more[0]}`, which RunPod does not document: "
                "pass ENDPOINT=id"
            )
        items = reply.get(key)
        if not isinstance(items, list):
            raise DeployError(f"GET {path} answered no list of `{key}`")
        return [self._identified(item) for item in items]

    @staticmethod
    def _identified(item: Any) -> Fields:
        if not isinstance(item, dict) or not isinstance(item.get("id"), str):
            raise DeployError("RunPod answered an item without `id`")
        return item

    def _request(self, method: str, path: str, body: object = None) -> Fields:
        """Raises DeployError: no answer, one that refuses (with its reasons), or not an object."""
        try:
            response = self._http.request(method, path, json=body)
        except httpx2.HTTPError as error:
            raise DeployError(f"{method} {path}: no answer from RunPod ({error})") from None
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
    """What an RFC 9457 problem says: title, detail, errors; or what came in its place."""
    if isinstance(reply, dict):
        errors = reply.get("errors")
        failures = "; ".join(map(str, errors)) if isinstance(errors, list) else ""
        parts = (reply.get("title"), reply.get("detail"), failures)
        text = ": ".join(str(part) for part in parts if part)
        return f" {text[:MAX_DETAIL]}" if text else ""
    if response.is_redirect:
        return ", a redirect, which is not followed"
    if not response.content:
        return " with an empty body"
    return f", which is no JSON object ({response.headers.get('Content-Type', 'no content type')})"


def read_settings(path: Path) -> Fields:
    """Raises DeployError: not TOML, or without a named endpoint."""
    try:
        endpoint = tomllib.loads(path.read_text("utf-8")).get("endpoint")
        json.dumps(endpoint, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:  # TOML has dates, and infinity
        raise DeployError(f"`{path.name}` is not TOML, or more than JSON holds: {error}") from None
    if not isinstance(endpoint, dict) or not isinstance(endpoint.get("name"), str):
        raise DeployError(f"`{path.name}` must have `name` in [endpoint]")
    for name in ("env", "gpu", "scaling", "workers"):
        if not isinstance(endpoint.get(name), dict):
            raise DeployError(f"`{path.name}` must have a table [endpoint.{name}]")
    for name, value in endpoint["env"].items():
        if SECRET_NAME.search(name):
            read_secret(str(value), name)  # whoever quotes it
    return endpoint


def plan(runpod: RunPod | None, image: str, endpoint: str | None, registry: str | None) -> Change:
    """Compare the settings with the endpoint of that id, or else of their name.

    Without `runpod`, everything is new. `registry` goes before the settings' own.

    Raises:
        DeployError: see `RunPod`; or the endpoint is of another `type`, which cannot be changed.
    """
    wanted = {**read_settings(SETTINGS), "image": image}
    if registry := registry or wanted.get("registry"):
        wanted["registry"] = runpod.registry(registry) if runpod else registry
    if runpod is None:
        return Change(wanted, None)
    current = runpod.endpoint(endpoint) if endpoint else runpod.endpoint_called(wanted["name"])
    if current is None:
        return Change(wanted, None)
    kind = current.get("type") or wanted.get("type")
    if kind != wanted.get("type") or "cpu" in current:
        compute = "CPUs" if "cpu" in current else "GPUs"
        raise DeployError(
            f"endpoint {current['id']} has `type` {kind} and {compute}, "
            "which no update changes: delete it, or choose another `name`"
        )
    renamed = {**current, "type": kind, "name": plain(current.get("name"))}
    return Change(one_cuda_constraint(wanted, current), renamed)


def one_cuda_constraint(wanted: Fields, current: Fields) -> Fields:
    """A floor and a set exclude each other, and setting one does not clear the other."""
    gpu, before = wanted["gpu"], table(current, "gpu")
    if gpu.get("minCudaVersion") and before.get("allowedCudaVersions"):
        gpu = {"allowedCudaVersions": [], **gpu}
    if gpu.get("allowedCudaVersions") and before.get("minCudaVersion"):
        gpu = {"minCudaVersion": "", **gpu}
    return {**wanted, "gpu": gpu}


def plain(name: object) -> str:
    """Without what RunPod once appended to the name of an endpoint with FlashBoot."""
    return str(name).strip().removesuffix("-fb").strip()
