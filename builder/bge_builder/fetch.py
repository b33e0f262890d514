"""Download what is pinned, and give no file its name before its hash is right.

A file arrives in a staging folder beside its place, is measured and hashed there, and only then
moves under its name. So whoever opens a pinned name opens the pinned bytes, or finds nothing.

Where from and as whom is huggingface_hub's business: it reads HF_ENDPOINT at import, HF_TOKEN (or
the token of `hf auth login`) at each request. Both may hold secrets, and the library's messages may
quote them, so every text of its passes through `redact`.
"""

import errno
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, get_token, hf_hub_url
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from bge_client.errors import ConfigurationError
from bge_client.redaction import RedactingFilter, read_secret, redact

from .errors import BuilderError
from .folders import locked
from .pins import Pin, PinnedFile

STAGING = ".incoming"


class FetchError(BuilderError):
    """A pinned file cannot be had, or is not what was pinned."""


def fetch(pin: Pin, destination: Path) -> None:
    """Bring every file of `pin` into the folder `destination`.

    A file already there with the pinned hash stays, and without one to fetch the network is left
    alone; a file with any other content is removed and fetched anew.

    Raises `FetchError` when the Hub, the network or the disk fails, or when what came is not what
    was pinned; `LockedError` when another process fetches into `destination`. Files fetched until
    then stay, and the next call goes on from them.
    """
    with _one_sentence(f"{pin.repo} could not be put in {destination}"), locked(destination):
        shutil.rmtree(destination / STAGING, ignore_errors=True)  # what a killed run left behind
        wanted = [file for file in pin.files if not _in_place(pin, file, destination)]
        if not wanted:
            return
        hub = HfApi()
        _keep_secrets(hub.endpoint)
        _knock(hub, pin, wanted[0])
        for file in wanted:
            _download(hub, pin, file, destination)


def _keep_secrets(endpoint: str) -> None:
    """Have the token and the endpoint's password removed from what the library says and logs."""
    try:
        if token := read_secret(os.environ.get("HF_TOKEN"), "HF_TOKEN"):
            os.environ["HF_TOKEN"] = token
        read_secret(get_token(), "token of hf auth login")
        user = endpoint.rpartition("@")[0].rpartition("//")[2]
        read_secret(user.partition(":")[2], "HF_ENDPOINT")
    except ConfigurationError as error:
        raise FetchError(str(error)) from None
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(RedactingFilter())


def _in_place(pin: Pin, file: PinnedFile, destination: Path) -> bool:
    """Whether the pinned file is there; a file of that name with other content is removed."""
    path = destination / file.name
    with _one_sentence(f"{pin.repo} {file.name} in {destination} could not be read or replaced"):
        if not path.exists():
            return False
        try:
            _check(pin, file, path)
        except FetchError as error:
            _say(f"{error}; fetching it anew")
            path.unlink()
            return False
    return True


def _knock(hub: HfApi, pin: Pin, file: PinnedFile) -> None:
    """Find out in seconds that there is no Hub to reach.

    hf_hub_download asks a refusing address again for half a minute and a silent one for six, which
    is patience well spent in the middle of a download and wasted on a build without a network.
    """
    url = hf_hub_url(pin.repo, file.name, revision=pin.revision, endpoint=hub.endpoint)
    with _fetching(hub, pin, file), suppress(HfHubHTTPError):  # any answer is a sign of life
        hub.get_hf_file_metadata(url=url)


def _download(hub: HfApi, pin: Pin, file: PinnedFile, destination: Path) -> None:
    """Fetch one file into staging, check it there, give it its name."""
    staging = destination / STAGING
    _say(f"{pin.repo} {file.name}: downloading {_megabytes(file.size)}")
    try:
        with _fetching(hub, pin, file):
            # Staging is empty, so the library has no older copy to settle for.
            hub.hf_hub_download(pin.repo, file.name, revision=pin.revision, local_dir=staging)
            _check(pin, file, staging / file.name)
            (staging / file.name).replace(destination / file.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check(pin: Pin, file: PinnedFile, path: Path) -> None:
    """Raise `FetchError` unless `path` holds exactly the pinned file."""
    if not path.is_file():
        raise FetchError(f"{pin.repo} {file.name} is missing from {path.parent}")
    size = path.stat().st_size
    if size != file.size:
        raise FetchError(_mismatch(pin, file, f"{file.size:,} bytes", f"{size:,} bytes"))
    _say(f"{pin.repo} {file.name}: hashing {_megabytes(size)}")
    sha256 = _sha256(path)
    if sha256 != file.sha256:
        raise FetchError(_mismatch(pin, file, f"sha256 {file.sha256}", f"sha256 {sha256}"))


def _mismatch(pin: Pin, file: PinnedFile, pinned: str, found: str) -> str:
    return f"{pin.repo} {file.name} is not the pinned file: pinned {pinned}, found {found}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _fetching(hub: HfApi, pin: Pin, file: PinnedFile) -> Iterator[None]:
    with _one_sentence(f"{pin.repo} {file.name} could not be fetched from {hub.endpoint}"):
        yield


@contextmanager
def _one_sentence(what: str) -> Iterator[None]:
    """Turn whatever the Hub, the network or the disk raises into one `FetchError`."""
    try:
        yield
    except (OSError, httpx2.HTTPError, httpx2.InvalidURL, RuntimeError, ValueError) as error:
        raise FetchError(redact(f"{what}: {_reason(_origin(error))}")) from error


def _origin(error: Exception) -> Exception:
    """The library wraps what stopped it in "not found locally"; the cause is the news."""
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return error.__cause__
    return error


def _reason(error: Exception) -> str:
    """Why it failed and what to do; kinds stand before their bases, for most are OSErrors."""
    match error:
        case GatedRepoError():
            return "the repository is gated; accept its terms there and set HF_TOKEN"
        case RepositoryNotFoundError():
            return "no such repository for this caller; set HF_TOKEN, or check HF_ENDPOINT"
        case RevisionNotFoundError():
            return "the pinned revision is not there; a mirror may lack it, check HF_ENDPOINT"
        case RemoteEntryNotFoundError():
            return "no such file at the pinned revision; check HF_ENDPOINT"
        case HfHubHTTPError():
            return _http_reason(error.response.status_code)
        case OfflineModeIsEnabled():
            return "offline mode is on; unset HF_HUB_OFFLINE"
        case FileMetadataError():
            return "the answer is not a Hub's; check HF_ENDPOINT and the proxy"
        case httpx2.UnsupportedProtocol() | httpx2.InvalidURL():
            return "HF_ENDPOINT is not a URL; set it to https://... or unset it"
        case httpx2.HTTPError():
            return f"{_first_line(error)}; check the network, or set HF_ENDPOINT to a mirror"
        case RuntimeError():  # what hf_xet raises, whatever stopped it
            return f"{_first_line(error)}; check the network, or set HF_HUB_DISABLE_XET=1"
        case OSError(errno=errno.ENOSPC):
            return "the disk is full; free some space, or choose another folder"
        case OSError(strerror=str(cause)):
            return f"{cause} ({error.filename})" if error.filename else cause
        case _:
            return _first_line(error)


def _http_reason(status: int) -> str:
    if status in (401, 403):
        return f"access refused (HTTP {status}); set HF_TOKEN to a valid token, or unset it"
    return f"the Hub answered HTTP {status}; try again later"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
