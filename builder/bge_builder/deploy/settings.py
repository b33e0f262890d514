"""`deploy.toml`: the fields of an endpoint of each type."""

from __future__ import annotations

import json
import re
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from bge_client import ConfigurationError
from bge_client.redaction import read_secret, redact

from ..errors import BuilderError

SETTINGS = Path(__file__).parents[1] / "deploy.toml"
SECRET_NAME = re.compile("KEYS?$|TOKEN$|SECRET|PASSWORD")  # of a variable; fields are in camelCase
TABLES = ("env", "gpu", "scaling", "workers")

Fields = dict[str, Any]
EndpointType = Literal["queue", "lb"]
# The section of each type, and RunPod's name of it.
SECTIONS: dict[EndpointType, tuple[str, str]] = {
    "queue": ("queue", "QUEUE"),
    "lb": ("load_balancer", "LOAD_BALANCER"),
}


class DeployError(BuilderError):
    """RunPod refuses or does not respond, or the settings are invalid. The message is redacted."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(" ".join(message.split())))


def read_settings(endpoint_type: EndpointType) -> Fields:
    """Return [endpoint] with the section of that type, whose tables are merged.

    Raises DeployError if the file is not TOML or the endpoint lacks its name, type or a table.
    """
    section, runpod_type = SECTIONS[endpoint_type]
    try:
        document = tomllib.loads(SETTINGS.read_text("utf-8"))
        json.dumps(document, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:  # TOML has dates and infinity
        raise DeployError(f"`{SETTINGS.name}` is not TOML, or not JSON: {error}") from None
    settings = merged(table(document, "endpoint"), table(document, section))
    if not isinstance(settings.get("name"), str):
        raise DeployError(f"`{SETTINGS.name}` must have `name` in [{section}]")
    if settings.get("type") != runpod_type:
        raise DeployError(f'`{SETTINGS.name}` must have `type = "{runpod_type}"` in [{section}]')
    for name in TABLES:
        if not isinstance(settings.get(name), dict):
            raise DeployError(f"`{SETTINGS.name}` must have a table [endpoint.{name}]")
    for name, value in settings["env"].items():
        if SECRET_NAME.search(name):
            read_secret(str(value), name)  # registers it for redaction
    return settings


def merged(shared: Fields, own: Fields) -> Fields:
    """Return the fields of both. `own` replaces fields, also those within a table."""
    tables = {
        name: {**shared[name], **value}
        for name, value in own.items()
        if isinstance(value, dict) and isinstance(shared.get(name), dict)
    }
    return {**shared, **own, **tables}


def table(fields: Fields, name: str) -> Fields:
    """Return a table of `fields`, empty if there is none."""
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def register_secrets(endpoint: Fields) -> None:
    """Register the secrets that an endpoint has in `env`: its workers may log them."""
    for name, value in table(endpoint, "env").items():
        with suppress(ConfigurationError):  # one with spaces is a reference to RunPod's secrets
            if SECRET_NAME.search(name):
                read_secret(str(value), name)
