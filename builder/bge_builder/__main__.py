"""python -m bge_builder fetch | convert | miniature | bake | verify | deploy"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bge_client import BGEError, Client, ConfigurationError
from bge_client.redaction import read_secret, redact
from bge_worker.errors import StartError

from .convert import convert
from .errors import BuilderError, as_text
from .miniature import build
from .pins import PINS

EXAMPLES = """examples:
  python -m bge_builder miniature --to checkpoints/miniature
  python -m bge_builder fetch --to checkpoints
  python -m bge_builder convert checkpoints/bge-m3 models/bge-m3
  python -m bge_builder verify models/bge-m3 models/bge-reranker-v2-m3

fetch honours HF_ENDPOINT (a mirror of the Hub) and HF_TOKEN."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. An expected failure prints one line on stderr and returns 1."""
    options = vars(make_parser().parse_args(arguments))
    run: Callable[..., int | None] = options.pop("run")
    try:
        return run(**options) or 0
    except (BuilderError, ConfigurationError, StartError) as error:
        message = str(error)
    except OSError as error:  # no space, no permission
        message = as_text(error)
    print(f"error: {redact(message)}", file=sys.stderr)
    return 1


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bge_builder",
        description="Build a worker's runtime folders; deploy its image.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    engines = ["packed", "flagembedding"]

    command = commands.add_parser("fetch", help="download and verify the pinned checkpoints")
    command.add_argument(
        "model", nargs="?", default="all", choices=["all", *(p.name for p in PINS)]
    )
    command.add_argument("--to", type=Path, default=Path("checkpoints"), metavar="FOLDER")
    command.set_defaults(run=run_fetch)

    command = commands.add_parser("convert", help="convert a checkpoint into a runtime folder")
    command.add_argument("source", type=Path, help="a folder in the Hub's format")
    command.add_argument("destination", type=Path, help="an existing runtime folder is replaced")
    command.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    command.add_argument("--name", help="the model's name in replies (default: the folder's name)")
    command.add_argument("--engine", choices=engines, default="packed")
    command.set_defaults(run=run_convert)

    command = commands.add_parser("miniature", help="build the miniature pair of checkpoints")
    command.add_argument("--to", type=Path, default=Path("checkpoints/miniature"), metavar="FOLDER")
    command.set_defaults(run=run_miniature)

    command = commands.add_parser("bake", help="write both runtime folders, for an image")
    command.add_argument("models", choices=["bge", "miniature", "none"])
    command.add_argument("--engine", choices=engines, default="packed")
    command.add_argument("--to", type=Path, default=Path("models"), metavar="FOLDER")
    command.set_defaults(run=run_bake)

    command = commands.add_parser("deploy", help="create or update an endpoint (deploy.toml)")
    command.add_argument("image", help="its name and tag in a registry")
    command.add_argument("--endpoint", metavar="ID", help="update the endpoint with this id")
    command.add_argument("--registry", help="name or id of the credential for a private image")
    command.add_argument("--dry-run", action="store_true", help="show the changes and stop")
    command.add_argument("--no-smoke", action="store_true", help="do not send a first request")
    command.set_defaults(run=run_deploy)

    command = commands.add_parser("verify", help="check runtime folders and published values")
    command.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    command.set_defaults(run=run_verify)
    return parser


def run_fetch(model: str, to: Path) -> None:
    # huggingface_hub reads both at import.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if endpoint := os.environ.pop("HF_ENDPOINT", "").strip():
        os.environ["HF_ENDPOINT"] = endpoint
    from .fetch import fetch  # only this command needs huggingface-hub

    for pin in PINS:
        if model in ("all", pin.name):
            fetch(pin, to / pin.name)
            print(f"{to / pin.name}: {pin.repo}, {pin.licence}, {pin.revision}")


def run_convert(source: Path, destination: Path, dtype: str, engine: str, name: str | None) -> None:
    manifest = convert(source, destination, dtype=dtype, engine=engine, name=name)
    print(
        f"{destination}: {manifest.model} to {manifest.role}, layout {manifest.layout}, "
        f"{manifest.dtype}, fingerprint {manifest.fingerprint}"
    )


def run_miniature(to: Path) -> None:
    build(to)
    print(f"{to}: miniature checkpoints")


def run_bake(models: str, engine: str, to: Path) -> None:
    """Write only the runtime folders: the checkpoints would double the size of an image."""
    to.mkdir(parents=True, exist_ok=True)
    if models == "none":
        return
    with TemporaryDirectory() as folder:
        checkpoints = Path(folder)
        if models == "bge":
            run_fetch("all", checkpoints)
        else:
            run_miniature(checkpoints)
        for pin in PINS:
            name = f"{models}/{pin.name}"
            run_convert(checkpoints / pin.name, to / pin.name, "float16", engine, name)


def run_deploy(
    image: str, endpoint: str | None, registry: str | None, dry_run: bool, no_smoke: bool
) -> None:
    from . import deploy

    key = read_secret(os.environ.get("RUNPOD_API_KEY"), "RUNPOD_API_KEY")
    if key is None:
        if not dry_run:
            raise deploy.DeployError("`RUNPOD_API_KEY` is not set")
        print("\n".join(deploy.plan(None, image, None, registry).lines()))
        print("not compared with RunPod: `RUNPOD_API_KEY` is not set; nothing was changed")
        return
    with deploy.RunPod(key) as runpod:
        change = deploy.plan(runpod, image, endpoint, registry)
        print(redact("\n".join(change.lines())))
        if dry_run:
            print("nothing was changed")
            return
        result = runpod.apply(change)
    for name, url in deploy.table(result, "requestUrls").items():
        print(redact(f"  {name}: {url}"))
    url = f"{deploy.ENDPOINTS}/{result['id']}"
    print(f"endpoint: {url}")
    if not no_smoke:
        send_first_request(url, key)


def send_first_request(url: str, key: str) -> None:
    """Embed a text; the request waits for the endpoint's cold start."""
    try:
        with Client(url, key, timeout=900) as client:
            vectors = client.embed(["fitness"])
    except BGEError as error:
        raise BuilderError(f"the endpoint does not answer: {error}") from None
    print(f"the endpoint answers: {vectors.model}, fingerprint {vectors.fingerprint}")


def run_verify(folders: Sequence[Path]) -> int:
    """Return 1 if a computed value differs from the published one."""
    from .verify import verify  # loads an engine

    all_agree = True
    for folder in folders:
        manifest, golden = verify(folder)
        print(f"{folder}: {manifest.model}, fingerprint {manifest.fingerprint}, files unchanged")
        if not golden:
            print("  golden values skipped: not the published weights")
        for value in golden:
            verdict = "agrees" if value.agrees else "DISAGREES"
            print(
                f"  {value.name}: published {value.published}, "
                f"computed {value.computed:.5f}: {verdict}"
            )
            all_agree = all_agree and value.agrees
    return 0 if all_agree else 1


if __name__ == "__main__":
    sys.exit(main())
