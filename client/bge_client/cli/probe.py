"""`bge probe`: show whether the vectors of another host are those of the endpoint."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..client import Client
from ..codec import EmbedOptions
from ..errors import ConfigurationError, ProbeError
from ..providers import Provider
from ..providers.environment import NAMES, Settings, provider_from
from ..providers.probe import MIN_COSINE, MIN_MARGIN, Probe, ProbeRow
from .command import connected

PROBE_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("provider", type=click.Choice(NAMES), required=False, metavar="[PROVIDER]")
@click.option("--save", type=PROBE_FILE, help="Write the probe of the endpoint to this file.")
@click.option("--against", type=PROBE_FILE, help="Compare with this file, not the endpoint.")
@connected("EMBEDDINGS", unless=("against",))
def probe(client: Client, provider: str | None, save: Path | None, against: Path | None) -> None:
    """Compare the vectors of PROVIDER with those of the endpoint.

    It is bge, jina, deepinfra, novita, siliconflow, cloudflare, tei, infinity, vllm or
    openai_compatible. Its key and address are read from the environment, as a router does. Exit
    code 5 if the vectors do not match.

    \b
      bge probe --save probe.json
      bge probe deepinfra
      bge probe deepinfra --against probe.json
    """
    if (provider is None) == (save is None):
        raise ConfigurationError("pass either PROVIDER or --save")
    if save is not None and against is not None:
        raise ConfigurationError("--against means nothing with --save")
    reference = Probe.loads(against.read_bytes()) if against else Probe.record(client)
    if save is not None:
        save.write_text(reference.dumps(), encoding="utf-8")
        click.echo(f"Probe of {reference.model}, fingerprint {reference.fingerprint}: {save}")
        return
    _compare(provider_from(provider or "", Settings(os.environ, "EMBEDDINGS")), reference)


def _compare(provider: Provider, reference: Probe) -> None:
    """Print the table. Raises ProbeError if a text does not match."""
    try:
        options = EmbedOptions(sparse=not provider.dense_only)
        rows = reference.compare(provider.embed(reference.texts, options=options))
    finally:
        provider.close()
    click.echo(f"{'text':8}{'cosine':>10}{'closest other':>16}{'sparse differ':>16}")
    for row in rows:
        click.echo(_line(row))
    if reasons := [row.reason for row in rows if row.reason]:
        raise ProbeError(f"{provider.name} does not match: {'; '.join(reasons)}")
    required = f"cosine >= {MIN_COSINE}, margin >= {MIN_MARGIN}"
    click.echo(f"{provider.name} matches {reference.fingerprint} ({required}).")


def _line(row: ProbeRow) -> str:
    difference = "" if row.weight_difference is None else f"{row.weight_difference:.4f}"
    return f"{row.name:8}{row.cosine:10.5f}{row.other_cosine:16.5f}{difference:>16}".rstrip()
