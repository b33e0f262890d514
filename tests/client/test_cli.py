"""`bge` run from a shell: output, exit codes, and resuming an interrupted run."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_worker.engine.engine import Engine
from bge_worker.settings import Settings
from fakes.scripted import Queue, Scripted, completed, job, status
from fakes.serving import serving

Bge = Callable[..., subprocess.CompletedProcess[str]]
TEXTS = [f"текст номер {number}" for number in range(1200)]


@pytest.fixture(scope="module")
def url(packed: Engine) -> Iterator[str]:
    with serving(packed, Settings()) as url:
        yield url


def environment(url: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BGE_")}
    return inherited | {"BGE_EMBEDDINGS_ENDPOINT": url}


@pytest.fixture
def bge(url: str) -> Bge:
    def run(*arguments: str, stdin: str = "", at: str = url) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bge_client", *arguments]
        return subprocess.run(
            command, input=stdin, env=environment(at), capture_output=True, text=True, timeout=60
        )

    return run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", "utf-8")
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_embed_writes_a_line_for_each_text_to_stdout(bge: Bge) -> None:
    run = bge("embed", "--sparse", stdin="море\n\nсуша\n")
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert [line["line"] for line in lines] == [0, 2]
    assert lines[0]["sparse"]["indices"] == sorted(lines[0]["sparse"]["indices"])
    assert len(lines[0]["dense"]) == 512
    assert run.stderr == ""  # no progress bar without a terminal


def test_embed_keeps_ids_of_jsonl(bge: Bge, tmp_path: Path) -> None:
    source = tmp_path / "passages.jsonl"
    ids = [{"id": 7}, {"_id": "b", "id": 8}, {"_id": None, "id": 9}]
    lines = [json.dumps(id | {"body": "море"}) for id in ids]
    source.write_text("\n".join(lines), "utf-8")
    run = bge("embed", str(source), "--field", "body", "--no-dense", "--colbert")
    assert [json.loads(line)["id"] for line in run.stdout.splitlines()] == [7, "b", 9]
    run = bge("embed", str(source))
    assert (run.returncode, run.stderr) == (1, "bge: ValidationError: line 1 has no field `text`\n")


def test_npz_holds_exact_vectors(bge: Bge, tmp_path: Path) -> None:
    target = tmp_path / "vectors.npz"
    texts = '{"text": "море", "id": 7}\n"суша и море"\n'
    run = bge("embed", "--jsonl", "-o", str(target), "--sparse", "--colbert", stdin=texts)
    assert run.returncode == 0, run.stderr
    with np.load(target) as arrays:
        assert arrays["dense"].shape == (2, 512)
        assert arrays["id"].tolist() == ["7", "null"]
        assert arrays["truncated"].tolist() == [False, False]
        assert arrays["sparse_indptr"][-1] == len(arrays["sparse_indices"])
        assert arrays["colbert_indptr"][-1] == len(arrays["colbert"])
    assert bge("embed", "-o", str(target), stdin="море\n").returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vectors.npz"]


def test_killed_run_is_resumed(bge: Bge, url: str, source: Path, tmp_path: Path) -> None:
    complete, interrupted = tmp_path / "complete.jsonl", tmp_path / "interrupted.jsonl"
    assert bge("embed", str(source), "-o", str(complete)).returncode == 0
    command = [sys.executable, "-m", "bge_client", "embed", str(source), "-o", str(interrupted)]
    with subprocess.Popen(command, env=environment(url)) as killed:
        while not interrupted.exists() or interrupted.read_bytes().count(b"\n") < 3:
            time.sleep(0.005)
        killed.send_signal(signal.SIGKILL)
    content = interrupted.read_bytes()
    interrupted.write_bytes(content[: len(content) * 2 // 3])  # within a line
    run = bge("embed", str(source), "-o", str(interrupted))
    assert run.returncode == 0, run.stderr
    assert "resuming after" in run.stderr
    resumed, uninterrupted = lines_of(interrupted), lines_of(complete)
    assert [line["line"] for line in resumed] == list(range(len(TEXTS)))
    np.testing.assert_allclose(
        [line["dense"] for line in resumed], [line["dense"] for line in uninterrupted], atol=1e-5
    )


@pytest.mark.parametrize("name", ["out.jsonl", "out.npz"])
def test_output_is_locked_and_the_error_names_the_holder(
    bge: Bge, tmp_path: Path, name: str
) -> None:
    target = tmp_path / (f"{name}.part" if name.endswith("npz") else name)
    with target.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        run = bge("embed", "-o", str(tmp_path / name), stdin="море\n")
    assert run.returncode == 2
    assert f"{target} is being written by process {os.getpid()}" in run.stderr
    assert target.read_bytes() == b""
    assert bge("embed", "-o", str(tmp_path / name), stdin="море\n").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_concurrent_runs_write_each_line_once(url: str, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "bge_client", "embed", str(source), "-o", str(target)]
    runs = [
        subprocess.Popen(command, env=environment(url), stderr=subprocess.DEVNULL) for _ in "ab"
    ]
    assert sorted(run.wait(60) for run in runs) in ([0, 2], [0, 0])  # 2: at the same time
    assert [line["line"] for line in lines_of(target)] == list(range(len(TEXTS)))


@pytest.mark.parametrize("output", ["/dev/null", "{}/fifo", "{}", "{}/no/such/x", "/dev/full"])
def test_special_output_is_written_or_refused(bge: Bge, tmp_path: Path, output: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    run = bge("embed", "-o", output.format(tmp_path), stdin="море\n")
    read = os.read(reader, 1_000_000)
    os.close(reader)
    is_written = output in ("/dev/null", "{}/fifo")
    expected = (0, 0) if is_written else (2, 1)
    assert (run.returncode, run.stderr.count("\n")) == expected, run.stderr
    assert (b"dense" in read) == (output == "{}/fifo")


def test_output_with_vectors_of_two_models_is_not_resumed(bge: Bge, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    assert bge("embed", "-o", str(target), stdin="море\nсуша\n").returncode == 0
    first, second = lines_of(target)
    lines = [json.dumps(line) + "\n" for line in (first, second | {"fingerprint": "older"})]
    target.write_text("".join(lines), "utf-8")
    run = bge("embed", "-o", str(target), stdin="море\nсуша\nлес\n")
    assert (run.returncode, "line 2, has vectors of model older" in run.stderr) == (5, True)


def test_output_of_another_run_is_not_resumed(bge: Bge, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    assert bge("embed", "-o", str(target), stdin="море\nсуша\n").returncode == 0
    other_texts = bge("embed", "-o", str(target), stdin="море\nлес\n")
    assert (other_texts.returncode, "line 2, was made of another text" in other_texts.stderr) == (
        2,
        True,
    )
    other_outputs = bge("embed", "-o", str(target), "--sparse", stdin="море\nсуша\n")
    assert "with other options" in other_outputs.stderr
    target.write_text("важное\n", "utf-8")
    assert "was not written by `bge embed`" in bge("embed", str(source), "-o", str(target)).stderr
    assert target.read_text("utf-8") == "важное\n"
    assert bge("embed", "-o", str(target), "--overwrite", stdin="лес\n").returncode == 0


def test_output_of_another_length_or_format_is_not_resumed(bge: Bge, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    assert bge("embed", "-o", str(target), "--max-length", "8", stdin="море\n").returncode == 0
    for options in ((), ("--max-length", "8", "--base64")):
        run = bge("embed", "-o", str(target), *options, stdin="море\nсуша\n")
        assert (run.returncode, "with other options" in run.stderr) == (2, True)


def test_texts_before_an_invalid_line_are_written(bge: Bge, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    good = [json.dumps({"text": f"текст {number}"}) for number in range(300)]
    source.write_text("\n".join([*good, '{"txt": "?"}']), "utf-8")
    run = bge("embed", str(source), "-o", str(target))
    assert (run.returncode, run.stderr) == (
        1,
        "bge: ValidationError: line 301 has no field `text`\n",
    )
    assert len(lines_of(target)) == 300


def test_overwrite_spares_the_source_and_waits_for_the_first_vector(
    bge: Bge, source: Path, tmp_path: Path
) -> None:
    assert "are the same file" in bge("embed", str(source), "-o", str(source), "--overwrite").stderr
    assert source.read_text("utf-8").splitlines() == TEXTS
    closed_port = "http://127.0.0.1:9"
    run = bge(
        *("embed", "-o", str(source), "--overwrite", "--timeout", "1"), stdin="море", at=closed_port
    )
    assert run.returncode == 4
    assert source.read_text("utf-8").splitlines() == TEXTS


@pytest.mark.parametrize("option", [[], ["--overwrite"]])
def test_folder_named_as_an_npz_file_is_refused_at_once(
    bge: Bge, tmp_path: Path, option: list[str]
) -> None:
    with Scripted() as endpoint:
        (tmp_path / "d.npz").mkdir()
        run = bge("embed", "-o", f"{tmp_path}/d.npz", *option, stdin="море", at=endpoint.url)
        assert (run.returncode, endpoint.seen) == (2, [])
    assert run.stderr == f"bge: ConfigurationError: {tmp_path}/d.npz is a folder\n"
    assert [path.name for path in tmp_path.iterdir()] == ["d.npz"]


def test_output_of_another_model_is_not_resumed(bge: Bge, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    bge("embed", "-o", str(target), stdin="море\n")
    first = lines_of(target)[0]
    target.write_text(json.dumps(first | {"fingerprint": "older"}) + "\n", "utf-8")
    run = bge("embed", "-o", str(target), stdin="море\nсуша\n")
    assert run.returncode == 5
    assert "has vectors of model older. Given: those of" in run.stderr
    assert len(lines_of(target)) == 1


def test_rerank_prints_the_best_first(bge: Bge) -> None:
    run = bge("rerank", "море", "--top-n", "1", stdin="суша\nо море\n")
    score, number, text = run.stdout.split(maxsplit=2)
    assert (number, text.strip()) == ("2", "о море")
    as_json = json.loads(bge("rerank", "море", "--json", stdin="о море\n").stdout)
    assert as_json["document"] == "о море"
    assert round(as_json["relevance_score"], 4) == float(score)


def test_texts_from_a_file_cannot_command_the_terminal(bge: Bge) -> None:
    run = bge("rerank", "море", "--jsonl", stdin=json.dumps("о\n\x1b[2J \x9bморе") + "\n")
    assert run.stdout.endswith("  о [2J море\n")


def test_info_health_and_bench(bge: Bge) -> None:
    assert json.loads(bge("info").stdout)["models"].keys() == {"embed", "rerank"}
    assert json.loads(bge("health").stdout)["workers"]["ready"] == 1
    last = bge("bench", "--requests", "3", "--texts", "2").stdout.splitlines()[-1]
    assert json.loads(last).keys() == {"p50_ms", "p99_ms", "texts_per_second"}
    assert bge("bench", "--requests", "3", "--rerank").returncode == 0


def test_interrupted_bench_cancels_its_jobs() -> None:
    command = [sys.executable, "-m", "bge_client", "bench", "--concurrency", "2"]
    with Scripted() as endpoint:
        queue = Queue(endpoint)
        endpoint.on("POST /runsync", completed, queue.submit)
        with subprocess.Popen(
            [*command, "--requests", "100000"], env=environment(endpoint.url)
        ) as bench:
            while len(queue.polled) < 2:
                time.sleep(0.005)
            bench.send_signal(signal.SIGINT)
            assert bench.wait(20) == 130
        assert queue.cancelled == queue.submitted != set()


@pytest.mark.parametrize(
    ("arguments", "answer", "code"),
    [
        (("info", "--in-flight", "0"), completed, 2),
        (("info",), status(401), 3),
        (("info",), status(400), 1),
        (("info", "--timeout", "1"), status(503), 4),
        (("info",), status(200, {"a": "b"}), 5),
        (("info",), job("COMPLETED", output={"engine": "\ud800"}), 2),
        (("info", "--endpoint", "http://.."), completed, 1),
        (("health",), status(200, {"workers": {"unhealthy": 1}}), 4),
        (("embed", "--timeout", "0"), completed, 2),
        (("embed",), completed, 2),
        (("embed", "-o", "no/such/folder/x"), completed, 2),
    ],
    ids=[
        "in-flight",
        "key",
        "refused",
        "busy",
        "protocol",
        "unprintable",
        "address",
        "unhealthy",
        "argument",
        "nothing-to-embed",
        "folder",
    ],
)
def test_exit_codes(arguments: tuple[str, ...], answer: Any, code: int, bge: Bge) -> None:
    with Scripted() as endpoint:
        endpoint.on("POST /runsync", answer)
        endpoint.on("GET /health", answer)
        run = bge(*arguments, stdin="море" if "-o" in arguments else "", at=endpoint.url)
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("kind", ["EMBEDDINGS", "RERANKER"])
def test_one_endpoint_serves_both_models_and_gets_its_own_key(kind: str) -> None:
    keys = {"RUNPOD_API_KEY": "k3y", "BGE_API_KEY": "own"}
    with Scripted() as endpoint:
        endpoint.on("POST /runsync", completed)
        env = os.environ | {"BGE_EMBEDDINGS_ENDPOINT": "", f"BGE_{kind}_ENDPOINT": endpoint.url}
        for arguments in (["embed"], ["rerank", "q"]):
            command = [sys.executable, "-m", "bge_client", *arguments]
            run = subprocess.run(command, input="море\n", env=env | keys, text=True, timeout=60)
            assert run.returncode == 0
    assert [seen.headers["Authorization"] for seen in endpoint.seen] == ["Bearer own"] * 2


def test_missing_extra_is_named() -> None:
    hide = "import sys; sys.modules['tqdm'] = None; from bge_client.__main__ import main; main()"
    env = environment("")
    run = subprocess.run([sys.executable, "-c", hide], env=env, capture_output=True, text=True)
    assert run.returncode == 1
    assert "pip install 'bge-client[cli]'" in run.stderr
