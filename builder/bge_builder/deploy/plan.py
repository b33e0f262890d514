"""The changes that make an endpoint what `deploy.toml` says. Pure: no request is sent here.

POST sends all fields, PATCH those that differ; a second run changes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from bge_client.redaction import redact

from .settings import SECRET_NAME, DeployError, Fields, table


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


def as_text(name: str, value: Any) -> str:
    if SECRET_NAME.search(name) and value is not None:
        return "***"
    return redact(json.dumps(value, ensure_ascii=False))


def plan(settings: Fields, current: Fields | None) -> Change:
    """Compare the settings with the endpoint, if there is one.

    Raises:
        DeployError: the endpoint has another `type`, which no update changes.
    """
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
