"""Download the pinned files. No file gets its name before its hash has been checked.

A file is downloaded to a staging folder, checked there for size and hash, and then renamed. So a
file with a pinned name has the pinned content.

huggingface_hub reads HF_ENDPOINT at import, and HF_TOKEN (or the token of `hf auth login`) at each
request. Both may contain secrets that the library's messages quote, so every message passes
through `redact`.
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
from huggingface_hub import errors as hub_errors
from tqdm import tqdm

from bge_client.errors import ConfigurationError
from bge_client.redaction import RedactingFilter, read_secret, redact

from .errors import BuilderError
from .folders import locked
from .pins import Pin, PinnedFile

STAGING = ".incoming"
CHUNK_BYTES = 1 << 20  # hashed at once


class FetchError(BuilderError):
    """A pinned file cannot be downloaded, or differs from its pin."""


def fetch(pin: Pin, destination: Path) -> None:
    """Download every file of `pin` into the folder `destination`.

    Files with the pinned hash stay; if all are present, no request is sent. A file with other
    content is removed and downloaded again. After an error the next call continues with the files
    that are missing.

    Raises:
        FetchError: the Hub, the network or the disk fails, or a file differs from its pin.
        LockedError: another process is writing `destination`.
    """
    with _as_fetch_error(f"{pin.repo} could not be written to {destination}"), locked(destination):
        shutil.rmtree(destination / STAGING, ignore_errors=True)  # of a killed run
        missing = [file for file in pin.files if not _is_fetched(pin, file, destination)]
        if not missing:
            return
        hub = HfApi()
        _register_secrets(hub.endpoint)
        _check_reachable(hub, pin, missing[0])
        for file in missing:
            _download(hub, pin, file, destination)


def _register_secrets(endpoint: str) -> None:
    """Register the token and the endpoint's password for redaction, in the library's logs too."""
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


def _is_fetched(pin: Pin, file: PinnedFile, destination: Path) -> bool:
    """Whether the pinned file exists; a file of its name with other content is removed."""
    path = destination / file.name
    with _as_fetch_error(f"{pin.repo} {file.name} in {destination} could not be read or replaced"):
        if not path.exists():
            return False
        try:
            _check(pin, file, path)
        except FetchError as error:
            _report(f"{error}; downloading it again")
            path.unlink()
            return False
    return True


def _check_reachable(hub: HfApi, pin: Pin, file: PinnedFile) -> None:
    """Raise `FetchError` within seconds if the Hub cannot be reached.

    hf_hub_download retries for half a minute if connections are refused, and for six minutes if
    they time out: too long for a build without a network.
    """
    url = hf_hub_url(pin.repo, file.name, revision=pin.revision, endpoint=hub.endpoint)
    with _fetching(hub, pin, file), suppress(hub_errors.HfHubHTTPError):  # any response will do
        hub.get_hf_file_metadata(url=url)


def _download(hub: HfApi, pin: Pin, file: PinnedFile, destination: Path) -> None:
    """Download one file to the staging folder, check it and rename it."""
    staging = destination / STAGING
    _report(f"{pin.repo} {file.name}: downloading {_megabytes(file.size)}")
    try:
        with _fetching(hub, pin, file):
            # The staging folder is empty: the library cannot fall back to an older copy.
            hub.hf_hub_download(pin.repo, file.name, revision=pin.revision, local_dir=staging)
            _check(pin, file, staging / file.name)
            (staging / file.name).replace(destination / file.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check(pin: Pin, file: PinnedFile, path: Path) -> None:
    """Raise `FetchError` unless `path` is the pinned file."""
    if not path.is_file():
        raise FetchError(f"{pin.repo} {file.name} is missing from {path.parent}")
    pinned, actual = f"{file.size:,} bytes", f"{path.stat().st_size:,} bytes"
    if actual == pinned:
        _report(f"{pin.repo} {file.name}: hashing {_megabytes(file.size)}")
        pinned, actual = f"sha256 {file.sha256}", f"sha256 {_sha256(path, file.size)}"
    if actual != pinned:
        raise FetchError(
            f"{pin.repo} {file.name} is not the pinned file: pinned {pinned}, found {actual}"
        )


def _sha256(path: Path, size: int) -> str:
    """Return a file's hash. A bar like those of the Hub's downloads shows how far it is."""
    digest = hashlib.sha256()
    bar = tqdm(total=size, unit="B", unit_scale=True, disable=None, leave=False)
    with path.open("rb") as stream, bar:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


@contextmanager
def _fetching(hub: HfApi, pin: Pin, file: PinnedFile) -> Iterator[None]:
    with _as_fetch_error(f"{pin.repo} {file.name} could not be fetched from {hub.endpoint}"):
        yield


@contextmanager
def _as_fetch_error(failure: str) -> Iterator[None]:
    """Convert errors of the Hub, the network and the disk to `FetchError`."""
    try:
        yield
    except (OSError, httpx2.HTTPError, httpx2.InvalidURL, RuntimeError, ValueError) as error:
        raise FetchError(redact(f"{failure}: {_reason(error)}")) from error


def _reason(error: Exception) -> str:
    """Return the reason and the remedy. Subclasses come first: most are OSErrors."""
    match error:
        case hub_errors.LocalEntryNotFoundError(
            __cause__=Exception() as cause
        ):  # wraps download errors
            return _reason(cause)
        case hub_errors.GatedRepoError():
            return "the repository is gated; accept its terms there and set HF_TOKEN"
        case hub_errors.RepositoryNotFoundError():
            return "the repository does not exist or is private; set HF_TOKEN, or check HF_ENDPOINT"
        case hub_errors.RevisionNotFoundError():
            return "the pinned revision does not exist; if HF_ENDPOINT is a mirror, it may lack it"
        case hub_errors.RemoteEntryNotFoundError():
            return "the pinned revision has no such file; check HF_ENDPOINT"
        case hub_errors.HfHubHTTPError(response=httpx2.Response(status_code=401 | 403 as status)):
            return f"access refused (HTTP {status}); set HF_TOKEN to a valid token, or unset it"
        case hub_errors.HfHubHTTPError():
            return f"the Hub answered HTTP {error.response.status_code}; try again later"
        case hub_errors.OfflineModeIsEnabled():
            return "offline mode is on; unset HF_HUB_OFFLINE"
        case hub_errors.FileMetadataError():
            return "the response is not a Hub's; check HF_ENDPOINT and the proxy"
        case httpx2.UnsupportedProtocol() | httpx2.InvalidURL():
            return "HF_ENDPOINT is not a URL; set it to https://... or unset it"
        case httpx2.HTTPError():
            return f"{_first_line(error)}; check the network, or set HF_ENDPOINT to a mirror"
        case RuntimeError():  # hf_xet raises no other type
            return f"{_first_line(error)}; check the network, or set HF_HUB_DISABLE_XET=1"
        case OSError(errno=errno.ENOSPC):
            return "the disk is full; free some space, or choose another folder"
        case OSError(strerror=str(text)):
            return f"{text} ({error.filename})" if error.filename else text
        case _:
            return _first_line(error)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
