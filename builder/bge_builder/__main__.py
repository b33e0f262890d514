"""python -m bge_builder fetch | convert | miniature | bake | verify | deploy"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bge_client import BGEError, Client, ConfigurationError
from bge_client.redaction import read_secret, redact
from bge_worker.errors import StartError

from .convert import convert
from .errors import BuilderError
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
    args = make_parser().parse_args(arguments)
    try:
        result: int = args.run(args)
    except (BuilderError, ConfigurationError, StartError) as error:
        return fail(str(error))
    except OSError as error:  # no space, no permission
        path = f": {error.filename}" if error.filename else ""
        return fail(f"{error.strerror or error}{path}")
    return result


def fail(message: str) -> int:
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


def run_fetch(args: argparse.Namespace) -> int:
    # huggingface_hub reads both at import.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if endpoint := os.environ.pop("HF_ENDPOINT", "").strip():
        os.environ["HF_ENDPOINT"] = endpoint
    from .fetch import fetch  # only this command needs huggingface-hub

    for pin in PINS:
        if args.model in ("all", pin.name):
            fetch(pin, args.to / pin.name)
            print(f"{args.to / pin.name}: {pin.repo}, {pin.licence}, {pin.revision}")
    return 0


def run_convert(args: argparse.Namespace) -> int:
    manifest = convert(
        args.source, args.destination, dtype=args.dtype, engine=args.engine, name=args.name
    )
    print(
        f"{args.destination}: {manifest.model} to {manifest.role}, layout {manifest.layout}, "
        f"{manifest.dtype}, fingerprint {manifest.fingerprint}"
    )
    return 0


def run_miniature(args: argparse.Namespace) -> int:
    build(args.to)
    print(f"{args.to}: miniature checkpoints")
    return 0


def run_bake(args: argparse.Namespace) -> int:
    """Write only the runtime folders: the checkpoints would double the size of an image."""
    args.to.mkdir(parents=True, exist_ok=True)
    if args.models == "none":
        return 0
    with TemporaryDirectory() as folder:
        sources = argparse.Namespace(model="all", to=Path(folder))
        if args.models == "bge":
            run_fetch(sources)
        else:
            run_miniature(sources)
        for pin in PINS:
            run_convert(
                argparse.Namespace(
                    source=sources.to / pin.name,
                    destination=args.to / pin.name,
                    dtype="float16",
                    engine=args.engine,
                    name=f"{args.models}/{pin.name}",
                )
            )
    return 0


def run_deploy(args: argparse.Namespace) -> int:
    from .deploy import ENDPOINTS, RunPod, plan, table

    key = read_secret(os.environ.get("RUNPOD_API_KEY"), "RUNPOD_API_KEY")
    if key is None:
        return plan_offline(args)
    with RunPod(key) as runpod:
        change = plan(runpod, args.image, args.endpoint, args.registry)
        print(redact("\n".join(change.lines())))
        if args.dry_run:
            print("nothing was changed")
            return 0
        endpoint = runpod.apply(change)
    for name, url in table(endpoint, "requestUrls").items():
        print(redact(f"  {name}: {url}"))
    url = f"{ENDPOINTS}/{endpoint['id']}"
    print(f"endpoint: {url}")
    return 0 if args.no_smoke else send_first_request(url, key)


def plan_offline(args: argparse.Namespace) -> int:
    from .deploy import plan

    if not args.dry_run:
        return fail("`RUNPOD_API_KEY` is not set")
    print("\n".join(plan(None, args.image, None, args.registry).lines()))
    print("not compared with RunPod: `RUNPOD_API_KEY` is not set; nothing was changed")
    return 0


def send_first_request(url: str, key: str) -> int:
    """Embed a text; the request waits for the endpoint's cold start."""
    try:
        with Client(url, key, timeout=900) as client:
            vectors = client.embed(["fitness"])
            print(f"the endpoint answers: {vectors.model}, fingerprint {vectors.fingerprint}")
    except BGEError as error:
        return fail(f"the endpoint does not answer: {error}")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    from .verify import verify  # loads an engine

    all_agree = True
    for folder in args.folders:
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
        all_agree = all_agree and all(value.agrees for value in golden)
    return 0 if all_agree else 1


if __name__ == "__main__":
    sys.exit(main())
