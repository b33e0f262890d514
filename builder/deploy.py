"""Template and endpoint on RunPod as `deploy.toml` says, shown before they are changed.

    plan   what there is (GET /templates, /endpoints) beside what there should be
    apply  POST what is missing, PATCH what differs; a second run changes nothing

Against RunPod's REST API, https://rest.runpod.io/v1, as documented in 2026-11.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

API = "https://rest.runpod.io/v1"
ENDPOINTS = "https://api.runpod.ai/v2"
SETTINGS = Path(__file__).with_name("deploy.toml")
SECONDS = 60.0


class DeployError(Exception):
    """One sentence: RunPod, or the settings, say no."""


@dataclass(frozen=True)
class Change:
    """One thing to create (`found` is None) or to change by the fields that differ."""

    kind: str  # templates, endpoints
    wanted: Mapping[str, Any]
    found: Mapping[str, Any] | None

    @property
    def fields(self) -> dict[str, Any]:
        """What is to be sent."""
        if self.found is None:
            return dict(self.wanted)
        return {
            name: value
            for name, value in self.wanted.items()
            if not same(value, self.found.get(name))
        }

    def lines(self) -> list[str]:
        """For a reader: `+` new, `~` from → to, `=` as it is."""
        name = f"{self.kind.removesuffix('s')} {self.wanted['name']}"
        if self.found is None:
            shown = [f"    {key} = {json.dumps(value)}" for key, value in self.wanted.items()]
            return [f"+ {name}", *shown]
        if not self.fields:
            return [f"= {name} ({self.found['id']})"]
        shown = [
            f"    {key}: {json.dumps(self.found.get(key))} -> {json.dumps(value)}"
            for key, value in self.fields.items()
        ]
        return [f"~ {name} ({self.found['id']})", *shown]


def same(wanted: Any, found: Any) -> bool:
    """RunPod returns some lists as strings with commas, and keeps no order."""
    if isinstance(wanted, list):
        found = found.split(",") if isinstance(found, str) else found
        return isinstance(found, list) and sorted(map(str, wanted)) == sorted(map(str, found))
    return bool(wanted == found)


class RunPod:
    """RunPod's REST API, as far as it is needed here."""

    def __init__(self, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx2.Client(base_url=API, headers=headers, timeout=SECONDS)

    def close(self) -> None:
        self._http.close()

    def find(self, kind: str, name: str, given_id: str | None = None) -> dict[str, Any] | None:
        """The one of that id, or of that name.

        Raises:
            DeployError: there are several of that name, or none of that id.
        """
        listed = self._ask("GET", kind)
        if not isinstance(listed, list):
            raise DeployError(f"GET /{kind} answered no list")
        found = [
            one
            for one in listed
            if (one["id"] == given_id if given_id else plain(one.get("name")) == name)
        ]
        if len(found) > 1:
            ids = ", ".join(one["id"] for one in found)
            raise DeployError(f"several {kind} are called {name}: {ids}. Say which by ENDPOINT=")
        if given_id and not found:
            raise DeployError(f"there is no endpoint {given_id} in this account")
        return found[0] if found else None

    def apply(self, change: Change) -> str:
        """Its id, once it is as wanted."""
        if change.found is None:
            return str(self._ask("POST", change.kind, change.fields)["id"])
        if change.fields:
            self._ask("PATCH", f"{change.kind}/{change.found['id']}", change.fields)
        return str(change.found["id"])

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        """Raises DeployError: no answer, or one that says no; with what it says."""
        try:
            reply = self._http.request(method, f"/{path}", json=body)
        except httpx2.HTTPError as error:
            raise DeployError(f"{method} /{path}: no answer from RunPod ({error})") from None
        if reply.status_code == 401:
            raise DeployError("RunPod does not accept `RUNPOD_API_KEY`")
        if reply.is_error:
            said = " ".join(reply.text.split())[:300]
            raise DeployError(f"{method} /{path}: HTTP {reply.status_code}: {said}")
        return reply.json()


def deploy(
    runpod: RunPod, image: str, endpoint: str | None, *, dry_run: bool, settings: Path = SETTINGS
) -> str | None:
    """Print the plan and, unless `dry_run`, carry it out.

    Returns:
        The endpoint's id; None of a dry run that would create it.

    Raises:
        DeployError: see there.
    """
    wanted = tomllib.loads(settings.read_text("utf-8"))
    template = {**wanted["template"], "imageName": image}
    template_change = Change(
        "templates", template, runpod.find("templates", wanted["template"]["name"])
    )
    found = runpod.find("endpoints", wanted["endpoint"]["name"], endpoint)
    print("\n".join(template_change.lines()))
    known = template_change.found["id"] if template_change.found else "(the new template)"
    planned = Change("endpoints", {**wanted["endpoint"], "templateId": known}, _unnamed(found))
    print("\n".join(planned.lines()))
    if dry_run:
        return None if found is None else str(found["id"])
    template_id = runpod.apply(template_change)
    return runpod.apply(
        Change("endpoints", {**wanted["endpoint"], "templateId": template_id}, _unnamed(found))
    )


def _unnamed(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """With the name as it was given: FlashBoot's suffix is no difference."""
    return found and {**found, "name": plain(found.get("name"))}


def plain(name: object) -> str:
    """Without what RunPod appends to the name of an endpoint with FlashBoot."""
    return str(name).strip().removesuffix("-fb").strip()
