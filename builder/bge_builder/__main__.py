"""python -m bge_builder fetch | convert | miniature | bake | verify | deploy | status | undeploy |
field-report"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bge_client import ConfigurationError
from bge_client.redaction import redact
from bge_worker.errors import StartError

from .convert import convert
from .errors import BuilderError, as_text
from .miniature import build
from .pins import PINS
from .progress import Step

MAX_WAIT_SECONDS = 86_400
EXAMPLES = """examples:
  python -m bge_builder miniature --to checkpoints/miniature
  python -m bge_builder fetch --to checkpoints
  python -m bge_builder convert checkpoints/bge-m3 models/bge-m3
  python -m bge_builder verify models/bge-m3 models/bge-reranker-v2-m3

fetch honours HF_ENDPOINT (a mirror of the Hub) and HF_TOKEN."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. An expected failure ends with one line on stderr; return its code, or 1."""
    options = vars(make_parser().parse_args(arguments))
    run: Callable[..., int | None] = options.pop("run")
    try:
        return run(**options) or 0
    except BuilderError as error:
        message, code = str(error), error.exit_code
    except (ConfigurationError, StartError) as error:
        message, code = str(error), 1
    except OSError as error:  # no space, no permission
        message, code = as_text(error), 1
    print(f"error: {redact(message)}", file=sys.stderr)
    return code


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
    command.add_argument("--dtype", choices=["float16", "float32", "int8"], default="float16")
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

    add_endpoint_commands(commands)
    add_field_report(commands)

    command = commands.add_parser("verify", help="check runtime folders and published values")
    command.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    command.set_defaults(run=run_verify)
    return parser


def add_endpoint_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    endpoint = argparse.ArgumentParser(add_help=False)
    types = ["queue", "lb"]
    endpoint.add_argument("--type", dest="endpoint_type", default="queue", choices=types)
    endpoint.add_argument("--endpoint", metavar="ID", help="an endpoint, whatever its name")

    description = """Exit codes: 1 RunPod refuses, 3 the image does not start, 4 no worker is ready
    in time, 130 interrupted."""
    command = commands.add_parser(
        "deploy",
        parents=[endpoint],
        help="create or update an endpoint (deploy.toml)",
        description=description,
    )
    command.add_argument("image", help="its name and tag in a registry")
    command.add_argument("--registry", help="name or id of the credential for a private image")
    command.add_argument("--dry-run", action="store_true", help="show the changes and stop")
    command.add_argument(
        "--wait",
        type=seconds,
        default=600.0,
        metavar="SECONDS",
        help="limit of the wait for a worker and the first vector; 0: do not wait (%(default)s)",
    )
    command.set_defaults(run=run_deploy)

    command = commands.add_parser("status", parents=[endpoint], help="show an endpoint")
    command.set_defaults(run=run_status)

    command = commands.add_parser("undeploy", parents=[endpoint], help="delete an endpoint")
    command.add_argument("--yes", action="store_true", help="do not ask")
    command.set_defaults(run=run_undeploy)


def add_field_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    description = """Measure what only a RunPod key, a card and the real weights can show, and write
    field-reports/DATE-CARD.json. A run that ends early goes on with the same command. Exit codes: 1
    a step failed, 130 interrupted."""
    command = commands.add_parser(
        "field-report", help="an hour of checks on RunPod or a GPU", description=description
    )
    command.add_argument("--image", help="default: the one that the repository publishes")
    command.add_argument("--registry", help="name or id of the credential for a private image")
    command.add_argument("--max-dollars", type=float, default=5.0, help="%(default)s")
    command.add_argument("--models", type=Path, default=Path("models"), help="with --local")
    mode = command.add_mutually_exclusive_group()
    mode.add_argument("--local", dest="is_local", action="store_true", help="on this machine's GPU")
    mode.add_argument("--clean", action="store_true", help="delete what killed runs have left")
    mode.add_argument("--table", action="store_true", help="print the table of all reports")
    command.set_defaults(run=run_field_report)


def seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= MAX_WAIT_SECONDS:
        raise argparse.ArgumentTypeError(f"must be 0 to {MAX_WAIT_SECONDS}. Given: {text[:20]}")
    return value


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
    with Step(f"converting {source.name}"):
        manifest = convert(source, destination, dtype=dtype, engine=engine, name=name)
    print(
        f"{destination}: {manifest.model} to {manifest.role}, layout {manifest.layout}, "
        f"{manifest.dtype}, fingerprint {manifest.fingerprint}"
    )


def run_miniature(to: Path) -> None:
    with Step("building the miniature models"):
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


def run_deploy(**options: Any) -> int:
    from .deploy.command import run_deploy  # only these commands need an HTTP client

    return run_deploy(**options)


def run_status(**options: Any) -> None:
    from .deploy.command import run_status

    run_status(**options)


def run_undeploy(**options: Any) -> int:
    from .deploy.command import run_undeploy

    return run_undeploy(**options)


def run_field_report(clean: bool, table: bool, **options: Any) -> int:
    from .field_report import command

    if clean:
        return command.run_clean()
    return command.run_table() if table else command.run_field_report(**options)


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
