"""python -m bge_builder fetch | convert | miniature | bake | verify | deploy"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bge_client.errors import ConfigurationError
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


def main(given: Sequence[str] | None = None) -> int:
    """Run one command; every foreseen failure is one sentence on stderr and exit code 1."""
    arguments = parser().parse_args(given)
    try:
        result: int = arguments.run(arguments)
    except (BuilderError, ConfigurationError, StartError) as error:
        return fail(str(error))
    except OSError as error:  # no space, no permission
        return fail(
            f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
        )
    return result


def fail(sentence: str) -> int:
    print(f"error: {redact(sentence)}", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m bge_builder",
        description="Make the folders a worker starts from.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    fetch = commands.add_parser("fetch", help="download the pinned checkpoints and verify them")
    fetch.add_argument("model", nargs="?", default="all", choices=["all", *(p.name for p in PINS)])
    fetch.add_argument("--to", type=Path, default=Path("checkpoints"), metavar="FOLDER")
    fetch.set_defaults(run=run_fetch)

    to_runtime = commands.add_parser("convert", help="turn a checkpoint into a runtime folder")
    to_runtime.add_argument("source", type=Path, help="a folder in the Hub's format")
    to_runtime.add_argument(
        "destination", type=Path, help="written anew; a folder there is replaced"
    )
    to_runtime.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    to_runtime.add_argument(
        "--name", help="what replies call the model (default: the folder's name)"
    )
    to_runtime.add_argument("--engine", choices=["packed", "flagembedding"], default="packed")
    to_runtime.set_defaults(run=run_convert)

    miniature = commands.add_parser("miniature", help="build the tiny pair of checkpoints")
    miniature.add_argument(
        "--to", type=Path, default=Path("checkpoints/miniature"), metavar="FOLDER"
    )
    miniature.set_defaults(run=run_miniature)

    bake = commands.add_parser("bake", help="both runtime folders and nothing else, for an image")
    bake.add_argument("models", choices=["bge", "miniature", "none"])
    bake.add_argument("--engine", choices=["packed", "flagembedding"], default="packed")
    bake.add_argument("--to", type=Path, default=Path("models"), metavar="FOLDER")
    bake.set_defaults(run=run_bake)

    to_cloud = commands.add_parser("deploy", help="an endpoint on RunPod (deploy.toml)")
    to_cloud.add_argument("image", help="as pushed to a registry, with its tag")
    to_cloud.add_argument("--endpoint", metavar="ID", help="update this one, whatever its name")
    to_cloud.add_argument("--registry", help="name or id of a private image's credential")
    to_cloud.add_argument("--dry-run", action="store_true", help="show what would change")
    to_cloud.add_argument("--no-smoke", action="store_true", help="do not send a first request")
    to_cloud.set_defaults(run=run_deploy)

    check = commands.add_parser("verify", help="check runtime folders, with golden values if real")
    check.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    check.set_defaults(run=run_verify)
    return top


def run_fetch(arguments: argparse.Namespace) -> int:
    # Both are read by the library at import, and nobody asked for telemetry.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if endpoint := os.environ.pop("HF_ENDPOINT", "").strip():
        os.environ["HF_ENDPOINT"] = endpoint
    from .fetch import fetch  # huggingface-hub is not needed for anything else

    for pin in PINS:
        if arguments.model in ("all", pin.name):
            fetch(pin, arguments.to / pin.name)
            print(f"{arguments.to / pin.name}: {pin.repo}, {pin.licence}, {pin.revision}")
    return 0


def run_convert(arguments: argparse.Namespace) -> int:
    manifest = convert(
        arguments.source,
        arguments.destination,
        dtype=arguments.dtype,
        engine=arguments.engine,
        name=arguments.name,
    )
    print(
        f"{arguments.destination}: {manifest.model} to {manifest.role}, layout {manifest.layout}, "
        f"{manifest.dtype}, fingerprint {manifest.fingerprint}"
    )
    return 0


def run_miniature(arguments: argparse.Namespace) -> int:
    build(arguments.to)
    print(f"{arguments.to}: miniature checkpoints")
    return 0


def run_bake(arguments: argparse.Namespace) -> int:
    """The checkpoints go with the temporary folder: an image is to hold their weights once."""
    arguments.to.mkdir(parents=True, exist_ok=True)
    if arguments.models == "none":
        return 0
    with TemporaryDirectory() as folder:
        sources = argparse.Namespace(model="all", to=Path(folder))
        made = run_fetch(sources) if arguments.models == "bge" else run_miniature(sources)
        for pin in () if made else PINS:
            run_convert(
                argparse.Namespace(
                    source=sources.to / pin.name,
                    destination=arguments.to / pin.name,
                    dtype="float16",
                    engine=arguments.engine,
                    name=f"{arguments.models}/{pin.name}",
                )
            )
    return made


def run_deploy(arguments: argparse.Namespace) -> int:
    from .deploy import ENDPOINTS, RunPod, plan, table

    key = read_secret(os.environ.get("RUNPOD_API_KEY"), "RUNPOD_API_KEY")
    if key is None:
        return plan_offline(arguments)
    with RunPod(key) as runpod:
        change = plan(runpod, arguments.image, arguments.endpoint, arguments.registry)
        print(redact("\n".join(change.lines())))
        if arguments.dry_run:
            print("nothing was changed")
            return 0
        endpoint = runpod.apply(change)
    for name, url in table(endpoint, "requestUrls").items():
        print(redact(f"  {name}: {url}"))
    url = f"{ENDPOINTS}/{endpoint['id']}"
    print(f"endpoint: {url}")
    return 0 if arguments.no_smoke else smoke(url, key)


def plan_offline(arguments: argparse.Namespace) -> int:
    from .deploy import plan

    if not arguments.dry_run:
        return fail("`RUNPOD_API_KEY` is not set")
    print("\n".join(plan(None, arguments.image, None, arguments.registry).lines()))
    print("compared with nothing, since `RUNPOD_API_KEY` is not set; nothing was changed")
    return 0


def smoke(url: str, key: str) -> int:
    """A first request, through a cold start."""
    try:
        from bge_client import BGEError, Client
    except ImportError:
        return fail("the first request needs the client: pip install ./client, or --no-smoke")
    try:
        with Client(url, key, timeout=900) as client:
            vectors = client.embed(["fitness"])
            print(f"it answers: {vectors.model}, fingerprint {vectors.fingerprint}")
    except BGEError as error:
        return fail(f"it does not answer: {error}")
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    from .verify import verify  # loads an engine

    agree = True
    for folder in arguments.folders:
        manifest, golden = verify(folder)
        print(f"{folder}: {manifest.model}, fingerprint {manifest.fingerprint}, files as written")
        if not golden:
            print("  golden values skipped: not the published weights")
        for value in golden:
            verdict = "agrees" if value.agrees else "DISAGREES"
            print(
                f"  {value.name}: published {value.published}, "
                f"computed {value.computed:.5f}: {verdict}"
            )
        agree = agree and all(value.agrees for value in golden)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
