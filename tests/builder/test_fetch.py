"""fetch() with the real huggingface_hub against a fake Hub on loopback."""

import errno
import hashlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, close_session, constants

from bge_builder.fetch import STAGING, FetchError, fetch
from bge_builder.pins import Pin, PinnedFile
from fakes.hub import FakeHub

ROOT = Path(__file__).parents[2]
REPO = "someone/tiny"
REVISION = "0123456789abcdef0123456789abcdef01234567"
SMALL = b'{"hidden_size": 4}\n'
LARGE = random.Random(0).randbytes(100_000)
CONTENTS = {"config.json": SMALL, "model.safetensors": LARGE}


def pinned(name: str, content: bytes) -> PinnedFile:
    return PinnedFile(name, len(content), hashlib.sha256(content).hexdigest())


PIN = Pin(REPO, REVISION, "MIT", tuple(pinned(name, data) for name, data in CONTENTS.items()))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A fake Hub with the pinned files and another one. fetch() uses it."""
    with FakeHub() as fake:
        fake.add(REPO, REVISION, "config.json", SMALL)
        fake.add(REPO, REVISION, "model.safetensors", LARGE, large=True)
        fake.add(REPO, REVISION, "README.md", b"# not pinned\n")
        use_endpoint(fake.url, monkeypatch)
        yield fake
        close_session()


def use_endpoint(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make fetch() use `endpoint`, whatever the environment was when the library was imported."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # Telemetry would send requests to the real Hub.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr("bge_builder.fetch.HfApi", partial(HfApi, endpoint=endpoint))


def unused_url() -> str:
    """Return a URL on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def run_fetch(
    destination: Path, before: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run fetch(PIN) in a fresh interpreter, where the library reads the environment itself."""
    process = start_fetch(destination, before, **environment)
    stdout, stderr = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def start_fetch(destination: Path, before: str = "", **environment: str) -> subprocess.Popen[str]:
    script = f"""
import sys
from pathlib import Path
from bge_builder.errors import BuilderError
from bge_builder.fetch import fetch
from bge_builder.pins import Pin, PinnedFile
{before}
try:
    fetch({PIN!r}, Path({str(destination)!r}))
except BuilderError as error:
    sys.exit(str(error))
"""
    home = destination.parent / "home"
    basics = {
        "PATH": os.defpath,
        "HOME": str(home),
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script],
        env=basics | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file under `folder`, including hidden ones."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class TestDownload:
    def test_brings_the_pinned_files_and_nothing_else(self, hub: FakeHub, tmp_path: Path) -> None:
        fetch(PIN, tmp_path / "tiny")
        assert contents(tmp_path / "tiny") == CONTENTS
        assert hub.downloads() == ["config.json", "model.safetensors"]
        assert {request.host for request in hub.requests} == {"hub", "storage"}
        assert all(f"/{REVISION}/" in request.path for request in hub.requests)

    def test_a_second_run_does_not_touch_the_network(self, hub: FakeHub, tmp_path: Path) -> None:
        fetch(PIN, tmp_path)
        hub.requests.clear()
        fetch(PIN, tmp_path)
        assert hub.requests == []

    def test_fetches_only_what_is_missing(self, hub: FakeHub, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").write_bytes(LARGE)
        fetch(PIN, tmp_path)
        assert hub.downloads() == ["config.json"]
        assert contents(tmp_path) == CONTENTS

    def test_replaces_a_file_with_other_content(
        self, hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fetch(PIN, tmp_path)
        hub.requests.clear()
        (tmp_path / "config.json").write_bytes(SMALL.swapcase())
        fetch(PIN, tmp_path)
        assert hub.downloads() == ["config.json"]
        assert contents(tmp_path) == CONTENTS
        assert "config.json is not the pinned file" in capsys.readouterr().err

    def test_removes_the_files_of_a_killed_run(self, hub: FakeHub, tmp_path: Path) -> None:
        (tmp_path / STAGING).mkdir()
        (tmp_path / STAGING / "model.safetensors").write_bytes(LARGE[:10])
        fetch(PIN, tmp_path)
        assert contents(tmp_path) == CONTENTS

    def test_resumes_an_interrupted_download(self, hub: FakeHub, tmp_path: Path) -> None:
        # The library writes in chunks of 10 MiB: a shorter file would start from zero.
        chunk = 10 * 1024 * 1024
        content = random.Random(1).randbytes(chunk + 500_000)
        hub.add(REPO, REVISION, "weights.bin", content, large=True)
        hub.cut("weights.bin", after=chunk + 100_000)
        fetch(replace(PIN, files=(pinned("weights.bin", content),)), tmp_path)
        assert contents(tmp_path) == {"weights.bin": content}
        ranges = [request.range for request in hub.requests if request.method == "GET"]
        assert ranges == [None, f"bytes={chunk}-"]

    def test_reports_progress_on_stderr(
        self, hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fetch(PIN, tmp_path)
        out, err = capsys.readouterr()
        assert out == ""
        assert f"{REPO} model.safetensors: downloading 0.1 MB" in err
        assert f"{REPO} model.safetensors: hashing 0.1 MB" in err


class TestWrongContent:
    """The downloaded file differs from its pin: the error names it, and it is removed."""

    def test_other_bytes_of_the_same_size(self, hub: FakeHub, tmp_path: Path) -> None:
        forged = bytes(reversed(LARGE))
        hub.add(REPO, REVISION, "model.safetensors", forged, large=True)
        with pytest.raises(FetchError) as caught:
            fetch(PIN, tmp_path)
        assert str(caught.value) == (
            f"{REPO} model.safetensors is not the pinned file: "
            f"pinned sha256 {hashlib.sha256(LARGE).hexdigest()}, "
            f"found sha256 {hashlib.sha256(forged).hexdigest()}"
        )
        assert contents(tmp_path) == {"config.json": SMALL}

    def test_other_bytes_than_the_headers_announce(self, hub: FakeHub, tmp_path: Path) -> None:
        hub.add(REPO, REVISION, "model.safetensors", LARGE, large=True, sent=LARGE[::-1])
        with pytest.raises(FetchError, match=r"model\.safetensors is not the pinned file"):
            fetch(PIN, tmp_path)
        assert contents(tmp_path) == {"config.json": SMALL}

    def test_another_size(self, hub: FakeHub, tmp_path: Path) -> None:
        hub.add(REPO, REVISION, "model.safetensors", LARGE + b"!", large=True)
        with pytest.raises(FetchError, match="pinned 100,000 bytes, found 100,001 bytes"):
            fetch(PIN, tmp_path)
        assert contents(tmp_path) == {"config.json": SMALL}

    def test_a_body_shorter_than_announced(self, hub: FakeHub, tmp_path: Path) -> None:
        hub.add(REPO, REVISION, "model.safetensors", LARGE, large=True, sent=LARGE[:-1])
        with pytest.raises(FetchError, match=r"model\.safetensors could not be fetched") as caught:
            fetch(PIN, tmp_path)
        assert "\n" not in str(caught.value)
        assert contents(tmp_path) == {"config.json": SMALL}

    def test_a_wrong_file_is_removed_even_if_the_download_fails(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        use_endpoint(unused_url(), monkeypatch)
        (tmp_path / "config.json").write_bytes(b"{}")
        with pytest.raises(FetchError):
            fetch(PIN, tmp_path)
        assert contents(tmp_path) == {}


class TestRefusals:
    """Each message is one line: what failed, where, and what to do."""

    def error_of(self, pin: Pin, destination: Path) -> str:
        with pytest.raises(FetchError) as caught:
            fetch(pin, destination)
        assert contents(destination) == {}
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_missing_file(self, hub: FakeHub, tmp_path: Path) -> None:
        pin = replace(PIN, files=(pinned("colbert_linear.pt", b"x"),))
        assert self.error_of(pin, tmp_path) == (
            f"{REPO} colbert_linear.pt could not be fetched from {hub.url}: "
            "the pinned revision has no such file; check HF_ENDPOINT"
        )

    def test_unknown_revision(self, hub: FakeHub, tmp_path: Path) -> None:
        message = self.error_of(replace(PIN, revision="f" * 40), tmp_path)
        assert "the pinned revision does not exist" in message

    def test_unknown_repository(self, hub: FakeHub, tmp_path: Path) -> None:
        message = self.error_of(replace(PIN, repo="someone/else"), tmp_path)
        assert message.startswith("someone/else config.json could not be fetched")
        assert "does not exist or is private; set HF_TOKEN" in message

    def test_private_repository(self, hub: FakeHub, tmp_path: Path) -> None:
        hub.required_token = "hf_right"
        assert "does not exist or is private; set HF_TOKEN" in self.error_of(PIN, tmp_path)

    def test_gated_repository(self, hub: FakeHub, tmp_path: Path) -> None:
        hub.required_token, hub.gated = "hf_right", True
        assert "gated; accept its terms there and set HF_TOKEN" in self.error_of(PIN, tmp_path)

    def test_wrong_token(
        self, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        hub.required_token = "hf_right"
        message = self.error_of(PIN, tmp_path)
        assert "access refused (HTTP 401); set HF_TOKEN to a valid token, or unset it" in message
        assert "hf_wrong" not in message

    def test_hub_outage(self, hub: FakeHub, tmp_path: Path) -> None:
        hub.outage = 501  # one that the library does not wait for
        assert "the Hub answered HTTP 501; try again later" in self.error_of(PIN, tmp_path)

    def test_no_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        endpoint = unused_url()
        use_endpoint(endpoint, monkeypatch)
        begin = time.monotonic()
        message = self.error_of(PIN, tmp_path)
        assert time.monotonic() - begin < 5
        assert message.startswith(f"{REPO} config.json could not be fetched from {endpoint}: ")
        assert "refused" in message
        assert message.endswith("; check the network, or set HF_ENDPOINT to a mirror")

    def test_endpoint_that_is_not_a_url(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use_endpoint("hub.example", monkeypatch)
        assert "HF_ENDPOINT is not a URL" in self.error_of(PIN, tmp_path)

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free some space"),
            (OSError(errno.EROFS, "Read-only", "/models"), "Read-only (/models)"),
            (httpx2.ReadError("reset by peer"), "reset by peer; check the network"),
            (httpx2.ReadTimeout(""), "ReadTimeout; check the network"),
            (
                RuntimeError("Task error: CAS\nat 5"),
                "Task error: CAS; check the network, or set HF_",
            ),
        ],
    )
    def test_errors_that_the_fake_cannot_cause(
        self,
        error: Exception,
        reason: str,
        hub: FakeHub,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(*args: object, **options: object) -> None:
            raise error

        monkeypatch.setattr(HfApi, "hf_hub_download", fail)
        assert f"fetched from {hub.url}: {reason}" in self.error_of(PIN, tmp_path)

    def test_folder_that_is_a_file(self, hub: FakeHub, tmp_path: Path) -> None:
        (tmp_path / "taken").write_bytes(b"")
        with pytest.raises(FetchError, match=r"could not be .*: Not a directory"):
            fetch(PIN, tmp_path / "taken")


class TestEnvironment:
    """What the library reads from the environment at import, so in a process of its own."""

    def test_endpoint_and_token(self, hub: FakeHub, tmp_path: Path) -> None:
        hub.required_token = "hf_right"
        destination = tmp_path / "tiny"
        result = run_fetch(destination, HF_ENDPOINT=hub.url, HF_TOKEN="hf_right")
        assert (result.returncode, result.stdout) == (0, ""), result.stderr
        assert contents(destination) == CONTENTS
        sent = {(request.host, request.authorization) for request in hub.requests}
        assert sent == {("hub", "Bearer hf_right"), ("storage", None)}

    def test_no_token_is_sent_when_there_is_none(self, hub: FakeHub, tmp_path: Path) -> None:
        result = run_fetch(tmp_path / "tiny", HF_ENDPOINT=hub.url)
        assert result.returncode == 0, result.stderr
        assert {request.authorization for request in hub.requests} == {None}

    def test_offline_mode(self, hub: FakeHub, tmp_path: Path) -> None:
        result = run_fetch(tmp_path / "tiny", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
        assert result.returncode == 1
        assert result.stderr.endswith(": offline mode is on; unset HF_HUB_OFFLINE\n")
        assert hub.requests == []

    def test_full_disk(self, hub: FakeHub, tmp_path: Path) -> None:
        limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
        result = run_fetch(tmp_path / "tiny", before=limit, HF_ENDPOINT=hub.url)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        assert result.stderr.endswith(f"could not be fetched from {hub.url}: File too large\n")
        assert contents(tmp_path / "tiny") == {"config.json": SMALL}


CANARY = "hf_CANARY0123456789"


class TestSecrets:
    """No run prints a token or the password of a URL."""

    def run(
        self, tmp_path: Path, before: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        result = run_fetch(tmp_path / "tiny", before=before, **environment)
        assert CANARY not in result.stdout + result.stderr
        return result

    @pytest.mark.parametrize("white_space", ["\n", " \r\n", " "])
    def test_white_space_around_a_token_is_stripped(
        self, white_space: str, hub: FakeHub, tmp_path: Path
    ) -> None:
        hub.required_token = CANARY
        result = self.run(tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=CANARY + white_space)
        assert result.returncode == 0, result.stderr

    @pytest.mark.parametrize("token", [f"{CANARY}\n{CANARY}", f"{CANARY}é", f"{CANARY}\x7f"])
    def test_a_token_that_is_not_a_valid_header_is_refused(
        self, token: str, hub: FakeHub, tmp_path: Path
    ) -> None:
        result = self.run(tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=token)
        assert result.stderr == ("`HF_TOKEN` must be printable ASCII without spaces\n")
        assert hub.requests == []

    def test_the_token_of_hf_auth_login_is_a_secret_too(self, hub: FakeHub, tmp_path: Path) -> None:
        (tmp_path / "token").write_text(f"{CANARY}\x7f")
        result = self.run(tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN_PATH=str(tmp_path / "token"))
        assert result.stderr == "`token of hf auth login` must be printable ASCII without spaces\n"

    @pytest.mark.parametrize("fault", ["nobody listens", "outage", "cut", "no scheme", "refused"])
    def test_a_password_of_the_endpoint_is_masked(
        self, fault: str, hub: FakeHub, tmp_path: Path
    ) -> None:
        url = unused_url() if fault == "nobody listens" else hub.url
        scheme = "" if fault == "no scheme" else "http://"
        hub.outage = 501 if fault == "outage" else None
        hub.required_token = "hf_right" if fault == "refused" else None
        if fault == "cut":
            hub.cut("model.safetensors", after=50_000)
        endpoint = f"{scheme}user:{CANARY}@{url.removeprefix('http://')}"
        result = self.run(tmp_path, HF_ENDPOINT=endpoint)
        assert result.returncode == (0 if fault == "cut" else 1)
        assert "Traceback" not in result.stderr
        if fault != "cut":
            assert "could not be fetched from" in result.stderr
            assert "***" in result.stderr

    def test_the_command_line_strips_white_space_and_masks_passwords(self, tmp_path: Path) -> None:
        endpoint = f"{unused_url().replace('//', f'//user:{CANARY}@')}"
        environment = os.environ | {"HF_ENDPOINT": f"{endpoint}\n", "NO_PROXY": "127.0.0.1"}
        environment["HF_HUB_OFFLINE"] = "0"  # an engine of an earlier test has set it
        result = subprocess.run(
            [sys.executable, "-m", "bge_builder", "fetch", "bge-m3", "--to", str(tmp_path)],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 1
        assert CANARY not in result.stdout + result.stderr
        assert result.stderr.startswith("error: BAAI/bge-m3 config.json could not be fetched from ")
        assert "refused" in result.stderr


class TestTwoRuns:
    """Two processes write the same folder."""

    def wait_for_download(self, hub: FakeHub) -> None:
        deadline = time.monotonic() + 30
        while "model.safetensors" not in hub.downloads():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def test_the_second_run_is_refused_and_the_first_continues(
        self, hub: FakeHub, tmp_path: Path
    ) -> None:
        held = hub.hold("model.safetensors")
        with start_fetch(tmp_path / "tiny", HF_ENDPOINT=hub.url) as first:
            self.wait_for_download(hub)
            second = run_fetch(tmp_path / "tiny", HF_ENDPOINT=hub.url)
            held.set()
            assert first.communicate(timeout=60)[1].endswith("hashing 0.1 MB\n")
        assert second.returncode == 1
        assert second.stderr == (
            f"another run (pid {first.pid}) is writing `{tmp_path / 'tiny'}`\n"
        )
        assert first.returncode == 0
        assert contents(tmp_path) == {f"tiny/{name}": data for name, data in CONTENTS.items()}

    def test_the_run_after_a_killed_one_cleans_up(self, hub: FakeHub, tmp_path: Path) -> None:
        held = hub.hold("model.safetensors")
        with start_fetch(tmp_path / "tiny", HF_ENDPOINT=hub.url) as killed:
            self.wait_for_download(hub)
            killed.kill()
        held.set()
        result = run_fetch(tmp_path / "tiny", HF_ENDPOINT=hub.url)
        assert result.returncode == 0, result.stderr
        assert contents(tmp_path) == {f"tiny/{name}": data for name, data in CONTENTS.items()}
